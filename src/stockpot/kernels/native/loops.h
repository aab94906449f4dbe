/* The loops, for one instruction set (see lanes.h). Orders of sums are part of the definition: docs/numbers.md. */

FN D NAME(from)(const void *row, int type, int64_t at) {
    if (type == BF16) return NAME(from_bf16)((const uint16_t *)row + at);
    if (type == FP16) return NAME(from_fp16)((const uint16_t *)row + at);
    if (type == FP32) return NAME(from_fp32)((const float *)row + at);
    return NAME(get)((const double *)row + at);
}

/* Elements as doubles, filled up with zeros to a multiple of SUMS. */
FN void NAME(load)(const void *row, int type, int64_t start, int64_t count, double *restrict out) {
    int64_t whole = count / WIDTH * WIDTH, end = (count + SUMS - 1) / SUMS * SUMS;
    if (type == BF16)
        for (int64_t k = 0; k < whole; k += WIDTH) NAME(put)(out + k, NAME(from)(row, BF16, start + k));
    else if (type == FP16)
        for (int64_t k = 0; k < whole; k += WIDTH) NAME(put)(out + k, NAME(from)(row, FP16, start + k));
    else if (type == FP32)
        for (int64_t k = 0; k < whole; k += WIDTH) NAME(put)(out + k, NAME(from)(row, FP32, start + k));
    else
        for (int64_t k = 0; k < whole; k += WIDTH) NAME(put)(out + k, NAME(from)(row, FP64, start + k));
    if (whole == end) return;
    double rest[WIDTH] = {0};
    memcpy(rest, (const char *)row + (start + whole) * size_of(type), (size_t)((count - whole) * size_of(type)));
    NAME(put)(out + whole, NAME(from)(rest, type, 0));
    for (whole += WIDTH; whole < end; whole += WIDTH) NAME(put)(out + whole, NAME(zero)());
}

/* Index of the first element from start to stop that is Inf or NaN; -1 where there is none. */
TARGET static int64_t NAME(first_nonfinite)(const void *row, int type, int64_t start, int64_t stop) {
    D most = NAME(all)(0x1.fffffffffffffp+1023);
    for (; stop - start >= WIDTH; start += WIDTH)
        if (!NAME(within)(NAME(size)(NAME(from)(row, type, start)), most)) break;
    for (; start < stop; start++)
        if (!is_finite(row, type, start)) return start;
    return -1;
}

/* 16-bit elements, or (with a first row) its differences from them, rounded to floats; zeros fill up to SUMS. */
FN void NAME(load_narrow)(const void *row0, int type0, const void *row, int type, int64_t start, int64_t count,
                          float *restrict out) {
    const uint16_t *first = row0 ? (const uint16_t *)row0 + start : NULL, *own = (const uint16_t *)row + start;
    int64_t whole = count / QUICK * QUICK, end = (count + SUMS - 1) / SUMS * SUMS;
    for (int64_t k = 0; k < whole; k += QUICK) {
        __builtin_prefetch(own + k + CHUNK, 0, 2); /* many rows at once are more than the processor follows by itself */
        Q x = NAME(q_from)(own + k, type);
        NAME(q_put_floats)(out + k, first ? NAME(q_sub)(NAME(q_from)(first + k, type0), x) : x);
    }
    if (whole == end) return;
    uint16_t rest[2][QUICK] = {{0}};
    memcpy(rest[1], own + whole, (size_t)(count - whole) * sizeof(uint16_t));
    Q x = NAME(q_from)(rest[1], type);
    if (first) {
        memcpy(rest[0], first + whole, (size_t)(count - whole) * sizeof(uint16_t));
        x = NAME(q_sub)(NAME(q_from)(rest[0], type0), x);
    }
    NAME(q_put_floats)(out + whole, x);
    for (whole += QUICK; whole < end; whole++) out[whole] = 0.0f;
}

/* The place of the running sums of rows i and j >= i. */
FN double *NAME(sums_of)(double *running, int64_t n, int64_t i, int64_t j) {
    return running + (i * n - i * (i - 1) / 2 + j - i) * SUMS;
}

FN D NAME(add_product)(D sum, D a, D b, int exact) {
    return exact ? NAME(add_exact_product)(sum, a, b) : NAME(add)(sum, NAME(mul)(a, b));
}

/* Doubles of a row: stored so, or as floats (half the memory, and a chunk of many rows stays near). */
FN D NAME(wide_at)(const char *row, int64_t k, int floats) {
    return floats ? NAME(from_fp32)((const float *)row + k) : NAME(get)((const double *)row + k);
}

/* Running sums of the products of some rows with some others, or (`same`) of those with j >= i. Products of floats are
 * exact in double. */
FN void NAME(multiply)(const void *wide, int64_t n, int64_t i, int64_t j, int rows, int columns, int same,
                       int64_t length, int floats, double *running) {
    int64_t row_bytes = CHUNK * (floats ? sizeof(float) : sizeof(double));
    const char *a = (const char *)wide + i * row_bytes, *b = (const char *)wide + j * row_bytes;
    for (int part = 0; part < SUMS; part += WIDTH) {
        D sum[TILE][TILE + 1];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 5
            for (int c = 0; c < columns; c++) sum[r][c] = NAME(zero)();
        for (int64_t k = part; k < length; k += SUMS) {
            D own[TILE];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) own[r] = NAME(wide_at)(a + r * row_bytes, k, floats);
#pragma GCC unroll 5
            for (int c = 0; c < columns; c++) {
                D other = same && c < rows ? own[c] : NAME(wide_at)(b + c * row_bytes, k, floats);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++)
                    if (!same || c >= r) sum[r][c] = NAME(add_product)(sum[r][c], own[r], other, floats);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 5
            for (int c = 0; c < columns; c++)
                if (!same || c >= r) NAME(put)(NAME(sums_of)(running, n, i + r, j + c) + part, sum[r][c]);
    }
}

/* All products of TILE rows with `columns` of themselves and of those that follow. */
FN void NAME(multiply_tile)(const void *wide, int64_t n, int64_t i, int64_t j, int64_t columns, int same,
                            int64_t length, int floats, double *running) {
    if (columns == TILE + 1)
        NAME(multiply)(wide, n, i, j, TILE, TILE + 1, same, length, floats, running);
    else if (columns == TILE)
        NAME(multiply)(wide, n, i, j, TILE, TILE, same, length, floats, running);
    else if (columns == 3)
        NAME(multiply)(wide, n, i, j, TILE, 3, same, length, floats, running);
    else
        NAME(multiply)(wide, n, i, j, TILE, 2, same, length, floats, running);
}

/* Rows as doubles, differences from the first unless raw. */
FN void NAME(load_wide)(const void *const *rows, const int32_t *types, int64_t n, int64_t start, int64_t count, int raw,
                        int zero_nonfinite, double *wide) {
    int64_t length = (count + SUMS - 1) / SUMS * SUMS;
    for (int64_t i = 0; i < n; i++) {
        double *own = wide + i * CHUNK;
        NAME(load)(rows[i], types[i], start, count, own);
        if (i && !raw)
            for (int64_t k = 0; k < length; k += WIDTH)
                NAME(put)(own + k, NAME(sub)(NAME(get)(wide + k), NAME(get)(own + k)));
    }
    if (zero_nonfinite)
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = i * CHUNK; k < i * CHUNK + length; k += WIDTH)
                NAME(put)(wide + k, NAME(finite_or_zero)(NAME(get)(wide + k)));
}

/* All running sums of a chunk of any rows, by way of memory; what the chunk lacks counts as zeros. */
FN void NAME(sum_many)(const void *const *rows, const int32_t *types, int64_t n, int64_t start, int64_t count, int raw,
                       int zero_nonfinite, int floats, double *wide, double *running) {
    int64_t length = (count + SUMS - 1) / SUMS * SUMS;
    if (floats)
        for (int64_t i = 0; i < n; i++) {
            float *own = (float *)wide + i * CHUNK;
            NAME(load_narrow)(i && !raw ? rows[0] : NULL, types[0], rows[i], types[i], start, count, own);
            for (int64_t k = 0; zero_nonfinite && k < length; k++)
                if (own[k] - own[k] != 0.0f) own[k] = 0.0f;
        }
    else
        NAME(load_wide)(rows, types, n, start, count, raw, zero_nonfinite, wide);
    int64_t i = 0;
    for (; n - i >= TILE; i += TILE)
        for (int64_t j = i, columns; j < n; j += columns) {
            columns = n - j == TILE + 1 ? TILE + 1 : least(n - j, TILE); /* one column alone is mostly loading */
            if (j == i)
                NAME(multiply_tile)(wide, n, i, j, columns, 1, length, floats, running);
            else
                NAME(multiply_tile)(wide, n, i, j, columns, 0, length, floats, running);
        }
    for (; i < n; i++)
        for (int64_t j = i; j < n; j++) NAME(multiply)(wide, n, i, j, 1, 1, 0, length, floats, running);
}

/* The same for a whole chunk of differences of at most FEW rows of one type: all sums stay in registers. */
FN void NAME(sum_rows)(const void *const *rows, int type, int64_t n, int64_t start, double *running) {
    for (int part = 0; part < SUMS; part += WIDTH) {
        D sum[FEW * (FEW + 1) / 2], x[FEW];
#pragma GCC unroll 10
        for (int p = 0; p < n * (n + 1) / 2; p++) sum[p] = NAME(zero)();
        for (int64_t k = start + part; k < start + CHUNK; k += SUMS) {
            if (type <= FP16) {
                F first = NAME(f_from)((const uint16_t *)rows[0] + k, type);
                x[0] = NAME(doubles)(first);
#pragma GCC unroll 4
                for (int64_t i = 1; i < n; i++)
                    x[i] = NAME(doubles)(NAME(f_sub)(first, NAME(f_from)((const uint16_t *)rows[i] + k, type)));
            } else {
                x[0] = NAME(from)(rows[0], type, k);
#pragma GCC unroll 4
                for (int64_t i = 1; i < n; i++) x[i] = NAME(sub)(x[0], NAME(from)(rows[i], type, k));
            }
            int p = 0;
#pragma GCC unroll 4
            for (int64_t i = 0; i < n; i++)
#pragma GCC unroll 4
                for (int64_t j = i; j < n; j++, p++) sum[p] = NAME(add_product)(sum[p], x[i], x[j], type <= FP16);
        }
#pragma GCC unroll 10
        for (int p = 0; p < n * (n + 1) / 2; p++) NAME(put)(running + p * SUMS + part, sum[p]);
    }
}

FN void NAME(sum_few)(const void *const *rows, int type, int64_t n, int64_t start, double *running) {
    if (type == BF16)
        NAME(sum_rows)(rows, BF16, n, start, running);
    else if (type == FP16)
        NAME(sum_rows)(rows, FP16, n, start, running);
    else if (type == FP32)
        NAME(sum_rows)(rows, FP32, n, start, running);
    else
        NAME(sum_rows)(rows, FP64, n, start, running);
}

TARGET static void NAME(sum_chunk)(const void *const *rows, const int32_t *types, int64_t n, int64_t start, int64_t count,
                                   int raw, int zero_nonfinite, double *wide, double *running) {
    int narrow = 1, few = count == CHUNK && !raw && !zero_nonfinite;
    for (int64_t i = 0; i < n; i++) {
        narrow &= types[i] <= FP16;
        few &= types[i] == types[0];
    }
    if (few && n == 2)
        NAME(sum_few)(rows, types[0], 2, start, running);
    else if (few && n == 3)
        NAME(sum_few)(rows, types[0], 3, start, running);
    else if (few && n == 4)
        NAME(sum_few)(rows, types[0], 4, start, running);
    else if (narrow)
        NAME(sum_many)(rows, types, n, start, count, raw, zero_nonfinite, 1, wide, running);
    else
        NAME(sum_many)(rows, types, n, start, count, raw, zero_nonfinite, 0, wide, running);
}

TARGET static void NAME(gram)(const void *const *rows, const int32_t *types, int64_t n, int64_t count, int64_t span,
                              int raw, int zero_nonfinite, double *scratch, double *out) {
    int64_t pairs = n * (n + 1) / 2;
    double *wide = scratch, *running = wide + n * CHUNK, *sums = running + pairs * SUMS, *stack = sums + pairs;
    for (int64_t first = 0; first < count; first += span, out += n * n) {
        int64_t last = least(first + span, count), chunks = 0;
        for (int64_t chunk = first; chunk < last; chunk += CHUNK, chunks++) {
            NAME(sum_chunk)(rows, types, n, chunk, least(last - chunk, CHUNK), raw, zero_nonfinite, wide, running);
            for (int64_t p = 0; p < pairs; p++) {
                double *sum = running + p * SUMS;
                for (int half = SUMS / 2; half >= WIDTH; half /= 2)
                    for (int k = 0; k < half; k += WIDTH)
                        NAME(put)(sum + k, NAME(add)(NAME(get)(sum + k), NAME(get)(sum + k + half)));
                sums[p] = NAME(sum_of_halves)(NAME(get)(sum));
            }
            /* Neighbours of one level are added as soon as both are there, like the carries of a counter. */
            int level = 0;
            for (; chunks >> level & 1; level++)
                for (int64_t p = 0; p < pairs; p++) sums[p] = stack[level * pairs + p] + sums[p];
            memcpy(stack + level * pairs, sums, (size_t)pairs * sizeof(double));
        }
        memset(sums, 0, (size_t)pairs * sizeof(double));
        for (int level = 0; chunks >> level; level++)
            if (chunks >> level & 1)
                for (int64_t p = 0; p < pairs; p++) sums[p] = stack[level * pairs + p] + sums[p];
        const double *sum = sums;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = i; j < n; j++) out[i * n + j] = out[j * n + i] = *sum++;
    }
}

/* Doubles that hold the exact values rounded to odd, rounded once into the output's type. */
FN void NAME(round_to)(D odd, void *out, int type) {
    if (type == FP64) {
        NAME(put)(out, odd);
    } else if (type == FP32) {
        NAME(put_floats)(out, NAME(floats)(odd));
    } else if (type == FP16) {
        NAME(put_halves)(out, NAME(fp16)(NAME(floats)(NAME(odd_float)(odd))));
    } else {
        NAME(put_halves)(out, NAME(bf16)(NAME(floats)(NAME(odd_float)(odd))));
        if (NAME(within)(NAME(all)(0x1p-126), NAME(size)(odd))) return;
        double values[WIDTH]; /* a subnormal float has fewer bits, and NaN must not round to a number */
        NAME(put)(values, odd);
        for (int k = 0; k < WIDTH; k++)
            if (!(fabs(values[k]) >= 0x1p-126)) ((uint16_t *)out)[k] = small_bf16(values[k]);
    }
}

/* Where every term is zero the sign of the sum is that of the plain sum; where terms cancel it is +. */
TARGET static double NAME(signed_zero)(const void *const *rows, const int32_t *types, int64_t n, int64_t at,
                                       const double *weights, const double *total, int skip_zero) {
    double x0[SUMS], x[SUMS], sum = 0.0;
    NAME(load)(rows[0], types[0], at, 1, x0);
    for (int64_t i = 1; i < n; i++) {
        if (skip_zero && weights[i] == 0.0) continue;
        NAME(load)(rows[i], types[i], at, 1, x);
        if (weights[i] * (x0[0] - x[0]) != 0.0) return 0.0;
        sum += weights[i] * (x0[0] - x[0]);
    }
    return total[0] * x0[0] == 0.0 ? total[0] * x0[0] - sum : 0.0;
}

/* Twice the digits of a double: S x_0 - sum_i a_i (x_0 - x_i), the rounding error of every step kept. */
FN void NAME(mix_exactly)(const void *const *rows, const int32_t *types, int64_t n, int64_t at, int vectors,
                          const double *weights, const double *total, int skip_zero, void *out, int out_type) {
    D x0[VECTORS], high[VECTORS], low[VECTORS], scale = NAME(all)(total[0]), rest = NAME(all)(total[1]);
    for (int v = 0; v < vectors; v++) {
        x0[v] = NAME(from)(rows[0], types[0], at + v * WIDTH);
        high[v] = NAME(mul)(scale, x0[v]);
        low[v] = NAME(add)(NAME(mul)(rest, x0[v]), NAME(error_of_product)(scale, x0[v], high[v]));
    }
    for (int64_t i = 1; i < n; i++) {
        if (skip_zero && weights[i] == 0.0) continue;
        D a = NAME(all)(-weights[i]);
        for (int v = 0; v < vectors; v++) {
            D x = NAME(from)(rows[i], types[i], at + v * WIDTH);
            D d = NAME(sub)(x0[v], x), back = NAME(sub)(x0[v], d);
            D d_error = NAME(add)(NAME(sub)(x0[v], NAME(add)(d, back)), NAME(sub)(back, x));
            D p = NAME(mul)(a, d), p_error = NAME(add)(NAME(error_of_product)(a, d, p), NAME(mul)(a, d_error));
            D sum = NAME(add)(high[v], p), kept = NAME(sub)(sum, high[v]);
            D error = NAME(add)(NAME(sub)(high[v], NAME(sub)(sum, kept)), NAME(sub)(p, kept));
            low[v] = NAME(add)(low[v], NAME(add)(error, p_error));
            high[v] = sum;
        }
    }
    for (int v = 0; v < vectors; v++) {
        D sum = NAME(add)(high[v], low[v]), kept = NAME(sub)(sum, high[v]);
        D error = NAME(add)(NAME(sub)(high[v], NAME(sub)(sum, kept)), NAME(sub)(low[v], kept));
        D rounded = out_type == FP64 ? sum : NAME(odd)(sum, error);
        if (!NAME(within)(NAME(all)(0x1p-1074), NAME(size)(sum))) {
            double values[WIDTH];
            NAME(put)(values, rounded);
            for (int k = 0; k < WIDTH; k++)
                if (values[k] == 0.0)
                    values[k] = NAME(signed_zero)(rows, types, n, at + v * WIDTH + k, weights, total, skip_zero);
            rounded = NAME(get)(values);
        }
        NAME(round_to)(rounded, (char *)out + v * WIDTH * size_of(out_type), out_type);
    }
}

/* A few vectors in plain doubles; where their error could change the rounding, again with twice the digits. Returns
 * whether all inputs are finite and no sum comes near the largest number of the output. */
FN int NAME(mix_few)(const void *const *rows, const int32_t *types, int64_t n, int64_t at, int vectors,
                     const double *weights, const double *total, int skip_zero, void *out, int out_type) {
    char *to = (char *)out + at * size_of(out_type);
    D x0[VECTORS], whole[VECTORS], sum[VECTORS], size[VECTORS], scale = NAME(all)(total[0]);
    for (int v = 0; v < vectors; v++) {
        x0[v] = NAME(from)(rows[0], types[0], at + v * WIDTH);
        whole[v] = NAME(mul)(scale, x0[v]);
        size[v] = NAME(size)(whole[v]);
        sum[v] = NAME(zero)();
    }
    for (int64_t i = 1; i < n; i++) {
        if (skip_zero && weights[i] == 0.0) continue;
        D a = NAME(all)(weights[i]);
        for (int v = 0; v < vectors; v++) {
            D p = NAME(mul)(a, NAME(sub)(x0[v], NAME(from)(rows[i], types[i], at + v * WIDTH)));
            sum[v] = NAME(add)(sum[v], p);
            size[v] = NAME(add)(size[v], NAME(size)(p));
        }
    }
    int fine = 1, sure = out_type != FP64;
    D limit = NAME(all)(largest[out_type]), unit = NAME(all)((double)(n + 4) * 0x1p-52);
    for (int v = 0; v < vectors; v++) {
        fine &= NAME(within)(size[v], limit);
        if (out_type == FP64) continue;
        D value = NAME(sub)(whole[v], sum[v]);
        /* Each of 2n + 2 operations errs by 2^-53 of at most `size`. 16-bit outputs are rounded by way of floats rounded
         * to odd, which is exact but for subnormal floats. Where all is zero, its sign is right already. */
        D error = NAME(mul)(size[v], unit);
        if (out_type != FP32) error = NAME(where_positive)(NAME(add)(error, NAME(all)(0x1p-148)), size[v]);
        /* The second is value + error, which would make +0 of -0. */
        D less = NAME(sub)(value, error), more = NAME(minus)(NAME(sub)(NAME(minus)(value), error));
        if (out_type != FP32) {
            less = NAME(odd_float)(less);
            more = NAME(odd_float)(more);
        }
        F low = NAME(floats)(less), high = NAME(floats)(more);
        if (out_type == FP32) {
            NAME(put_floats)((float *)to + v * WIDTH, low);
            sure &= NAME(same_floats)(low, high);
        } else {
            H one = out_type == BF16 ? NAME(bf16)(low) : NAME(fp16)(low);
            NAME(put_halves)((uint16_t *)to + v * WIDTH, one);
            sure &= NAME(same_halves)(one, out_type == BF16 ? NAME(bf16)(high) : NAME(fp16)(high));
        }
    }
    if (!sure) NAME(mix_exactly)(rows, types, n, at, vectors, weights, total, skip_zero, to, out_type);
    return fine;
}

/* Floats; `far`: past the caches. */
FN void NAME(put_all)(float *out, const F *values, int far) {
#pragma GCC unroll 8
    for (int v = 0; v < FLOATS * (QUICK / WIDTH); v++)
        if (far)
            NAME(put_floats_far)(out + v * WIDTH, values[v]);
        else
            NAME(put_floats)(out + v * WIDTH, values[v]);
}

/* The same for float inputs and outputs, by fewer steps: sum_i a_i x_i in doubles. Where the weights have few bits and
 * the |x_i| are not far from each other, the sum is exact (`steps` at least 0); elsewhere a bound of its error may tell. */
FN int NAME(mix_floats)(const void *const *rows, int64_t n, int64_t at, const double *weights, const struct ease *ease,
                        int32_t steps, float *out, int far) {
    enum { PARTS = QUICK / WIDTH };
    D sum[FLOATS * PARTS];
    F rounded[FLOATS * PARTS];
    Q largest[FLOATS], smallest[FLOATS];
#pragma GCC unroll 8
    for (int v = 0; v < FLOATS * PARTS; v++) sum[v] = NAME(zero)();
#pragma GCC unroll 4
    for (int v = 0; v < FLOATS; v++) {
        largest[v] = NAME(q_all)(LARGER_THAN_ZERO);
        smallest[v] = NAME(q_all)(FLT_MAX);
    }
    for (int64_t i = 0; i < n; i++) {
        const float *x = (const float *)rows[i] + at;
        D a = NAME(all)(weights[i]);
#pragma GCC unroll 8
        for (int v = 0; v < FLOATS * PARTS; v++)
            sum[v] = NAME(add_rounded_product)(sum[v], a, NAME(from_fp32)(x + v * WIDTH));
#pragma GCC unroll 4
        for (int v = 0; v < FLOATS; v++) {
            largest[v] = NAME(q_larger)(largest[v], NAME(q_get)(x + v * QUICK));
            if (steps >= 0) smallest[v] = NAME(q_smaller)(smallest[v], NAME(q_get)(x + v * QUICK));
        }
    }
    int exact = steps >= 0, fine = 1, sure = 1;
#pragma GCC unroll 4
    for (int v = 0; v < FLOATS; v++) {
        fine &= NAME(q_within)(largest[v], NAME(q_all)(ease->most));
        if (steps >= 0) exact &= NAME(q_near)(largest[v], smallest[v], steps);
    }
    if (!fine) return 0;
    D error[PARTS];
#pragma GCC unroll 4
    for (int v = 1; v < FLOATS; v++) largest[0] = NAME(q_larger)(largest[0], largest[v]);
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++) /* more than nothing, so that zeros, whose sign follows a rule, are never sure */
        error[part] = NAME(add_rounded_product)(NAME(all)(0x1p-1000), NAME(all)(ease->reach), NAME(q_doubles)(largest[0], part));
#pragma GCC unroll 8
    for (int v = 0; v < FLOATS * PARTS; v++) {
        if (exact) {
            rounded[v] = NAME(floats)(sum[v]);
            continue;
        }
        rounded[v] = NAME(floats)(NAME(sub)(sum[v], error[v % PARTS]));
        sure &= NAME(same_floats)(rounded[v], NAME(floats)(NAME(add)(sum[v], error[v % PARTS])));
    }
    if (!sure) return 0;
    NAME(put_all)(out + at, rounded, far);
    return 1;
}

/* The same with each weight in two parts: the sum of the first is exact, that of the second sixteen thousand times
 * smaller. It tells what weights like 1/3 leave within 2^-54 of half-way: of three tenths and seven, a tenth. */
FN int NAME(mix_floats_finely)(const void *const *rows, int64_t n, int64_t at, const struct ease *ease, float *out,
                               int far) {
    enum { PARTS = QUICK / WIDTH };
    D high[PARTS], low[PARTS];
    F rounded[FLOATS * PARTS];
    int sure = 1;
#pragma GCC unroll 4
    for (int v = 0; v < FLOATS; v++) {
        Q largest = NAME(q_all)(LARGER_THAN_ZERO), smallest = NAME(q_all)(FLT_MAX);
        for (int part = 0; part < PARTS; part++) high[part] = low[part] = NAME(zero)();
        for (int64_t i = 0; i < n; i++) {
            const float *x = (const float *)rows[i] + at + v * QUICK;
            D first = NAME(all)(ease->parts[2 * i]), second = NAME(all)(ease->parts[2 * i + 1]);
            largest = NAME(q_larger)(largest, NAME(q_get)(x));
            smallest = NAME(q_smaller)(smallest, NAME(q_get)(x));
            for (int part = 0; part < PARTS; part++) {
                D wide = NAME(from_fp32)(x + part * WIDTH);
                high[part] = NAME(add_rounded_product)(high[part], first, wide);
                low[part] = NAME(add_rounded_product)(low[part], second, wide);
            }
        }
        sure &= NAME(q_within)(largest, NAME(q_all)(ease->most)) & NAME(q_near)(largest, smallest, ease->steps_of_first);
        for (int part = 0; part < PARTS; part++) {
            D sum = NAME(add)(high[part], low[part]), kept = NAME(sub)(sum, high[part]);
            D rest = NAME(add)(NAME(sub)(high[part], NAME(sub)(sum, kept)), NAME(sub)(low[part], kept));
            D error = NAME(mul)(NAME(all)(ease->reach_of_second), NAME(q_doubles)(largest, part));
            sure &= !NAME(undecided)(sum, rest, error);
            rounded[v * PARTS + part] = NAME(floats)(NAME(odd)(sum, rest));
        }
    }
    if (sure) NAME(put_all)(out + at, rounded, far);
    return sure;
}

/* The same for 16-bit inputs and outputs in floats. Elements whose error leaves one value of the output are done; the
 * places of the others, counted from `start`, are added to `unsure`. Returns how many there are, or -1 where all may not
 * be finite: then nothing is decided. Where the |x_i| are at most `steps` (if not negative) from each other there is no
 * error. */
FN int NAME(mix_quickly)(const void *const *rows, const int32_t *types, int64_t n, int64_t start, int64_t at,
                         const double *weights, const double *total, int skip_zero, void *out, int out_type,
                         int32_t steps, uint16_t *unsure, int count) {
    enum { GROUPS = VECTORS * WIDTH / QUICK };
    Q x0[GROUPS], whole[GROUPS], sum[GROUPS], size[GROUPS], top[GROUPS], bottom[GROUPS], scale = NAME(q_all)((float)total[0]);
    for (int v = 0; v < GROUPS; v++) {
        x0[v] = NAME(q_from)((const uint16_t *)rows[0] + at + v * QUICK, types[0]);
        whole[v] = NAME(q_mul)(scale, x0[v]);
        sum[v] = size[v] = NAME(q_zero)();
        if (steps < 0) continue;
        top[v] = NAME(q_larger)(NAME(q_all)(LARGER_THAN_ZERO), x0[v]);
        bottom[v] = NAME(q_size)(x0[v]);
    }
    for (int64_t i = 1; i < n; i++) {
        if (skip_zero && weights[i] == 0.0) continue;
        Q a = NAME(q_all)((float)weights[i]);
        for (int v = 0; v < GROUPS; v++) {
            Q x = NAME(q_from)((const uint16_t *)rows[i] + at + v * QUICK, types[i]);
            Q p = NAME(q_mul)(a, NAME(q_sub)(x0[v], x));
            sum[v] = NAME(q_add)(sum[v], p);
            size[v] = NAME(q_add)(size[v], NAME(q_size)(p));
            if (steps < 0) continue;
            top[v] = NAME(q_larger)(top[v], x);
            bottom[v] = NAME(q_smaller)(bottom[v], x);
        }
    }
    /* Terms err by 2^-24 of their size for each operation, their own sum's included; S x_0 by 5 x 2^-24 of itself, up to
     * the last subtraction. Subnormal products err by less than 2^-120. */
    Q limit = NAME(q_all)((float)largest[out_type]), of_sum = NAME(q_all)((float)(n + 5) * 0x1p-23f);
    int fine = 1;
    uint32_t differs = 0;
    for (int v = 0; v < GROUPS; v++) {
        Q value = NAME(q_sub)(whole[v], sum[v]), reach = NAME(q_size)(whole[v]);
        Q error = NAME(q_add)(NAME(q_mul)(reach, NAME(q_all)(5 * 0x1p-24f)), NAME(q_mul)(size[v], of_sum));
        reach = NAME(q_add)(reach, size[v]);
        error = NAME(q_where_positive)(NAME(q_add)(error, NAME(q_all)(0x1p-120f)), reach);
        if (steps >= 0) error = NAME(q_unless_near)(error, top[v], bottom[v], steps);
        Q high = NAME(q_minus)(NAME(q_sub)(NAME(q_minus)(value), error));
        fine &= NAME(q_within)(reach, limit);
        uint32_t own = NAME(q_put)((uint16_t *)out + at + v * QUICK, NAME(q_sub)(value, error), high, out_type);
        differs |= own << v * QUICK;
    }
    for (; differs; differs &= differs - 1) unsure[count++] = (uint16_t)(at - start + lowest_bit(differs));
    return fine ? count : -1;
}

/* Single elements of 16-bit rows, gathered, with twice the digits of a double. */
FN void NAME(mix_scattered)(const void *const *rows, const int32_t *types, int64_t n, int64_t start,
                            const double *weights, const double *total, int skip_zero, void *out, int out_type,
                            const uint16_t *places, int count, double *scratch) {
    enum { TOGETHER = VECTORS * WIDTH };
    uint16_t *moved = (uint16_t *)(scratch + n), result[TOGETHER];
    const void **moved_rows = (const void **)scratch;
    for (int64_t i = 0; i < n; i++) moved_rows[i] = moved + i * TOGETHER;
    for (; count > 0; count -= TOGETHER, places += TOGETHER) {
        int some = count < TOGETHER ? count : TOGETHER;
        for (int64_t i = 0; i < n; i++)
            for (int k = 0; k < TOGETHER; k++)
                moved[i * TOGETHER + k] = ((const uint16_t *)rows[i])[start + places[k < some ? k : 0]];
        NAME(mix_exactly)(moved_rows, types, n, 0, VECTORS, weights, total, skip_zero, result, out_type);
        for (int k = 0; k < some; k++) ((uint16_t *)out)[start + places[k]] = result[k];
    }
}

/* At most CHUNK elements; returns whether all is finite. */
FN int NAME(mix_many)(const void *const *rows, const int32_t *types, int64_t n, int64_t start, int64_t stop,
                      const double *weights, const double *total, int skip_zero, int quick, int32_t steps, const struct ease *ease,
                      void *out, int out_type, int far, double *scratch) {
    int fine = 1, unsure = 0;
    uint16_t places[CHUNK];
    int64_t at = start;
    int doubtful = 0;
    for (; ease && at + FLOATS * QUICK <= stop; at += FLOATS * QUICK) {
        if (!doubtful && (ease->steps < 0 ? NAME(mix_floats)(rows, n, at, weights, ease, -1, out, far)
                                          : NAME(mix_floats)(rows, n, at, weights, ease, ease->steps, out, far)))
            continue;
        doubtful = 1; /* the rest of the chunk too, probably */
        if (NAME(mix_floats_finely)(rows, n, at, ease, out, far)) continue;
        for (int64_t v = 0; v < FLOATS * QUICK; v += VECTORS * WIDTH)
            fine &= NAME(mix_few)(rows, types, n, at + v, VECTORS, weights, total, skip_zero, out, out_type);
    }
    for (; at + VECTORS * WIDTH <= stop; at += VECTORS * WIDTH) {
        if (quick) {
            int found = steps < 0 ? NAME(mix_quickly)(rows, types, n, start, at, weights, total, skip_zero, out, out_type,
                                                      -1, places, unsure)
                                  : NAME(mix_quickly)(rows, types, n, start, at, weights, total, skip_zero, out, out_type,
                                                      steps, places, unsure);
            if (found >= 0) {
                unsure = found;
                continue;
            }
        }
        fine &= NAME(mix_few)(rows, types, n, at, VECTORS, weights, total, skip_zero, out, out_type);
    }
    for (; at + WIDTH <= stop; at += WIDTH)
        fine &= NAME(mix_few)(rows, types, n, at, 1, weights, total, skip_zero, out, out_type);
    if (at < stop) /* the last few, some of them again */
        fine &= NAME(mix_few)(rows, types, n, stop - WIDTH, 1, weights, total, skip_zero, out, out_type);
    if (unsure)
        NAME(mix_scattered)(rows, types, n, start, weights, total, skip_zero, out, out_type, places, unsure, scratch);
    return fine;
}

TARGET static int64_t NAME(mix)(const void *const *rows, const int32_t *types, int64_t n, int64_t count, int64_t span,
                                const double *weights, const double *totals, int pass_nonfinite, double *scratch,
                                void *out, int out_type, int far) {
    int64_t size = size_of(out_type);
    far = far && (uintptr_t)out % 64 == 0 && (span >= count || span * size % 64 == 0);
    for (int64_t first = 0; first < count; first += span, weights += n, totals += 2) {
        int64_t last = least(first + span, count), used = 0, sole = 0;
        int alike = 1;
        for (int64_t i = 0; i < n; i++)
            if (weights[i] != 0.0) {
                used++;
                sole = i;
                alike &= types[i] == out_type;
            }
        int alone = used == 1 && weights[sole] == 1.0, copied = alone && alike;
        int kept = used > 1 && alike && fabs(totals[0] - 1.0) < 1e-14 && (weights[0] == 0.0 || out_type == FP64);
        /* One input alone is converted as it is, not as a difference from the reference: -0 stays -0. */
        static const double one[] = {1.0}, whole[] = {1.0, 0.0};
        const void *const *from = alone ? rows + sole : rows;
        const int32_t *from_types = alone ? types + sole : types;
        const double *used_weights = alone ? one : weights, *used_totals = alone ? whole : totals;
        int64_t used_rows = alone ? 1 : n;
        int quick = out_type <= FP16 && fits_float(used_totals[0]);
        int floats = out_type == FP32;
        for (int64_t i = 0; i < used_rows; i++) {
            if (from_types[i] > FP16 || !fits_float(used_weights[i])) quick = 0;
            if (from_types[i] != FP32) floats = 0;
        }
        int32_t steps = quick ? exact_steps_of_halves(used_weights, used_rows, used_totals[0]) : -1;
        struct ease ease = ease_of(used_weights, used_rows, scratch + (n + 1) * (WIDEST + 1));
        for (int64_t start = first; start < last; start += CHUNK) {
            int64_t stop = least(start + CHUNK, last);
            int fine = 1;
            if (copied) {
                char *to = (char *)out + start * size;
                const char *kept_bytes = (const char *)rows[sole] + start * size;
                int64_t bytes = (stop - start) * size, done = 0;
                for (; far && done + 64 <= bytes; done += 64) NAME(copy_far)(to + done, kept_bytes + done);
                memcpy(to + done, kept_bytes + done, (size_t)(bytes - done));
            } else if (stop - start >= WIDTH) {
                fine = NAME(mix_many)(from, from_types, used_rows, start, stop, used_weights, used_totals, pass_nonfinite,
                                      quick, steps, floats ? &ease : NULL, out, out_type, far, scratch);
            } else {
                const void **moved = (const void **)(scratch + WIDTH * (n + 1));
                for (int64_t i = 0; i < used_rows; i++) {
                    moved[i] = memset(scratch + WIDTH * i, 0, WIDTH * sizeof(double));
                    memcpy(scratch + WIDTH * i, (const char *)from[i] + start * size_of(from_types[i]),
                           (size_t)((stop - start) * size_of(from_types[i])));
                }
                fine = NAME(mix_few)(moved, from_types, used_rows, 0, 1, used_weights, used_totals, pass_nonfinite,
                                     scratch + WIDTH * n, out_type);
                memcpy((char *)out + start * size, scratch + WIDTH * n, (size_t)((stop - start) * size));
            }
            for (int64_t i = 0; i < n && alone && !pass_nonfinite; i++)
                fine &= NAME(first_nonfinite)(rows[i], types[i], start, stop) < 0;
            if (kept) keep_agreed(rows, n, start, stop, weights, out, out_type);
            for (int64_t k = fine ? stop : start; k < stop; k++) {
                int inputs = 1;
                for (int64_t i = 0; i < n; i++)
                    if (!pass_nonfinite || weights[i] != 0.0) inputs &= is_finite(rows[i], types[i], k);
                if (!copied && !(inputs && is_finite(out, out_type, k))) {
                    double rounded[WIDTH], x[SUMS], sum[WIDTH] = {0};
                    for (int64_t i = 0; i < n; i++) {
                        if (weights[i] == 0.0) continue;
                        NAME(load)(rows[i], types[i], k, 1, x);
                        sum[0] += weights[i] * x[0];
                    }
                    if (sum[0] != sum[0]) sum[0] = NAN; /* one and the same, whatever the input's */
                    NAME(round_to)(NAME(get)(sum), rounded, out_type);
                    memcpy((char *)out + k * size, rounded, (size_t)size);
                }
                if (!pass_nonfinite && !(inputs && is_finite(out, out_type, k))) return k;
            }
        }
    }
    return -1;
}
