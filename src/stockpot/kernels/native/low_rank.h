/* A thin product added to a row, for one instruction set (see lanes.h). */

/* `vectors` vectors of one row's columns, their sums in registers. */
FN void NAME(low_rank_columns)(const void *row, int type, int64_t at, double *out, int vectors, int64_t rank,
                               const double *left, const double *right, D scale, int exact) {
    D sums[VECTORS_OF_COLUMNS];
    for (int v = 0; v < vectors; v++) sums[v] = NAME(zero)();
    for (int64_t k = 0; k < rank; k++) {
        D a = NAME(all)(left[k]);
        const double *b = right + k * COLUMNS;
        for (int v = 0; v < vectors; v++) {
            D factor = NAME(get)(b + v * WIDTH);
            sums[v] = exact ? NAME(add_exact_product)(sums[v], a, factor) : NAME(add)(sums[v], NAME(mul)(a, factor));
        }
    }
    for (int v = 0; v < vectors; v++)
        NAME(put)(out + v * WIDTH, NAME(add)(NAME(from)(row, type, at + v * WIDTH), NAME(mul)(scale, sums[v])));
}

FN void NAME(low_rank)(const void *row, int type, double *out, int64_t start, int64_t stop, int64_t columns, int64_t rank,
                       const double *left, const double *right, double scale, int exact) {
    const int64_t width = VECTORS_OF_COLUMNS * WIDTH;
    int64_t first = start / columns, last = (stop - 1) / columns;
    D scales = NAME(all)(scale);
    for (int64_t block = 0; block < columns; block += width) {
        const double *tile = right + block / COLUMNS * COLUMNS * rank - block / COLUMNS * COLUMNS;
        for (int64_t line = first; line <= last; line++) {
            int64_t begin = block, end = least(block + width, columns);
            if (line == first && begin < start - first * columns) begin = start - first * columns;
            if (line == last && end > stop - last * columns) end = stop - last * columns;
            const double *own = left + line * rank;
            int64_t at = line * columns - start;
            if (end - begin == width) {
                NAME(low_rank_columns)(row, type, at + begin, out + at + begin, VECTORS_OF_COLUMNS, rank, own, tile + begin,
                                       scales, exact);
                continue;
            }
            for (; end - begin >= WIDTH; begin += WIDTH)
                NAME(low_rank_columns)(row, type, at + begin, out + at + begin, 1, rank, own, tile + begin, scales,
                                       exact);
            for (; begin < end; begin++) {
                double sum = 0.0, rest[WIDTH] = {0};
                for (int64_t k = 0; k < rank; k++) sum += own[k] * tile[k * COLUMNS + begin];
                memcpy(rest, (const char *)row + (at + begin) * size_of(type), (size_t)size_of(type));
                NAME(put)(rest, NAME(from)(rest, type, 0));
                out[at + begin] = rest[0] + scale * sum;
            }
        }
    }
}

TARGET static void NAME(add_low_rank)(const void *row, int type, double *out, int64_t start, int64_t stop,
                                      int64_t columns, int64_t rank, const double *left, const double *right,
                                      double scale, int exact) {
    if (exact && type == BF16)
        NAME(low_rank)(row, BF16, out, start, stop, columns, rank, left, right, scale, 1);
    else if (exact && type == FP32)
        NAME(low_rank)(row, FP32, out, start, stop, columns, rank, left, right, scale, 1);
    else if (exact)
        NAME(low_rank)(row, type, out, start, stop, columns, rank, left, right, scale, 1);
    else
        NAME(low_rank)(row, type, out, start, stop, columns, rank, left, right, scale, 0);
}
