/* Sums of trimmed differences from a reference, for one instruction set (see lanes.h): which are kept, by magnitude and
 * at random, and what they come to. _plain_trim.py defines the same bits with numpy. */

/* Some 64-bit numbers at a time, of which the lower halves count. */
#if ISA == ISA_AVX512
#define U __m512i
FN U NAME(u_all)(uint64_t x) { return _mm512_set1_epi64((long long)x); }
FN U NAME(u_count)(uint64_t first) {
    return _mm512_add_epi64(_mm512_set1_epi64((long long)first), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
}
FN U NAME(u_product)(U a, U b) { return _mm512_mul_epu32(a, b); }
FN U NAME(u_high)(U a) { return _mm512_srli_epi64(a, 32); }
FN U NAME(u_xor)(U a, U b) { return _mm512_xor_si512(a, b); }
/* x where the lower half of a is below the limit, else 0. */
/* x where not key < low, else 0: NaN stays; and not key >= high. */
FN D NAME(where_from)(D x, D key, D low) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(key, low, _CMP_NLT_UQ), x);
}
FN D NAME(where_between)(D x, D key, D low, D high) {
    __mmask8 stays = _mm512_cmp_pd_mask(key, low, _CMP_NLT_UQ);
    return _mm512_maskz_mov_pd(_mm512_mask_cmp_pd_mask(stays, key, high, _CMP_NGE_UQ), x);
}
FN D NAME(quotient)(D a, D b) { return _mm512_div_pd(a, b); }
/* a where it is farther from zero than `tiny`, else 1. */
FN D NAME(or_one)(D a, D tiny) {
    return _mm512_mask_mov_pd(_mm512_set1_pd(1.0), _mm512_cmp_pd_mask(_mm512_abs_pd(a), tiny, _CMP_GT_OQ), a);
}
/* a + b, but a where b is zero. */
FN D NAME(moved)(D a, D b) {
    return _mm512_mask_add_pd(a, _mm512_cmp_pd_mask(b, _mm512_setzero_pd(), _CMP_NEQ_UQ), a, b);
}
FN D NAME(where_below)(D x, U a, U limit) {
    return _mm512_maskz_mov_pd(_mm512_cmplt_epu64_mask(_mm512_and_si512(a, _mm512_set1_epi64(0xffffffff)), limit), x);
}
/* a where x has the sign of s, which is no -0, and is not zero, or is NaN; else 0. */
FN D NAME(where_agrees)(D a, D x, D s) {
    D turned = _mm512_xor_pd(x, _mm512_and_pd(s, _mm512_set1_pd(-0.0)));
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(turned, _mm512_setzero_pd(), _CMP_NLE_UQ), a);
}
#elif ISA == ISA_AVX2
#define U __m256i
FN D NAME(where_agrees)(D a, D x, D s) {
    D turned = _mm256_xor_pd(x, _mm256_and_pd(s, _mm256_set1_pd(-0.0)));
    return _mm256_and_pd(a, _mm256_cmp_pd(turned, _mm256_setzero_pd(), _CMP_NLE_UQ));
}
FN U NAME(u_all)(uint64_t x) { return _mm256_set1_epi64x((long long)x); }
FN U NAME(u_count)(uint64_t first) {
    return _mm256_add_epi64(_mm256_set1_epi64x((long long)first), _mm256_set_epi64x(3, 2, 1, 0));
}
FN U NAME(u_product)(U a, U b) { return _mm256_mul_epu32(a, b); }
FN U NAME(u_high)(U a) { return _mm256_srli_epi64(a, 32); }
FN U NAME(u_xor)(U a, U b) { return _mm256_xor_si256(a, b); }
FN D NAME(where_from)(D x, D key, D low) { return _mm256_and_pd(x, _mm256_cmp_pd(key, low, _CMP_NLT_UQ)); }
FN D NAME(where_between)(D x, D key, D low, D high) {
    return _mm256_and_pd(x, _mm256_and_pd(_mm256_cmp_pd(key, low, _CMP_NLT_UQ), _mm256_cmp_pd(key, high, _CMP_NGE_UQ)));
}
FN D NAME(quotient)(D a, D b) { return _mm256_div_pd(a, b); }
FN D NAME(or_one)(D a, D tiny) {
    return _mm256_blendv_pd(_mm256_set1_pd(1.0), a, _mm256_cmp_pd(NAME(size)(a), tiny, _CMP_GT_OQ));
}
FN D NAME(moved)(D a, D b) {
    return _mm256_blendv_pd(a, _mm256_add_pd(a, b), _mm256_cmp_pd(b, _mm256_setzero_pd(), _CMP_NEQ_UQ));
}
FN D NAME(where_below)(D x, U a, U limit) {
    U below = _mm256_cmpgt_epi64(limit, _mm256_and_si256(a, _mm256_set1_epi64x(0xffffffff)));
    return _mm256_and_pd(_mm256_castsi256_pd(below), x);
}
#else
#define U uint64_t
FN D NAME(where_agrees)(D a, D x, D s) { return (signbit(s) ? x >= 0.0 : x <= 0.0) ? 0.0 : a; }
FN U NAME(u_all)(uint64_t x) { return x; }
FN U NAME(u_count)(uint64_t first) { return first; }
FN U NAME(u_product)(U a, U b) { return (a & 0xffffffff) * (b & 0xffffffff); }
FN U NAME(u_high)(U a) { return a >> 32; }
FN U NAME(u_xor)(U a, U b) { return a ^ b; }
FN D NAME(where_from)(D x, D key, D low) { return key < low ? 0.0 : x; }
FN D NAME(where_between)(D x, D key, D low, D high) { return key < low || key >= high ? 0.0 : x; }
FN D NAME(quotient)(D a, D b) { return a / b; }
FN D NAME(or_one)(D a, D tiny) { return fabs(a) > tiny ? a : 1.0; }
FN D NAME(moved)(D a, D b) { return b == 0.0 ? a : a + b; }
FN D NAME(where_below)(D x, U a, U limit) { return (a & 0xffffffff) < limit ? x : 0.0; }
#endif

/* Which of some keys are at least the limit, as bits. */
FN uint32_t NAME(at_least)(D key, D limit) {
#if ISA == ISA_AVX512
    return _mm512_cmp_pd_mask(key, limit, _CMP_GE_OQ);
#elif ISA == ISA_AVX2
    return (uint32_t)_mm256_movemask_pd(_mm256_cmp_pd(key, limit, _CMP_GE_OQ));
#else
    return key >= limit;
#endif
}

#if ISA == ISA_AVX512
FN uint32_t NAME(q_at_least)(Q key, Q limit) { return _mm512_cmp_ps_mask(key, limit, _CMP_GE_OQ); }
#elif ISA == ISA_AVX2
FN uint32_t NAME(q_at_least)(Q key, Q limit) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(key, limit, _CMP_GE_OQ)); }
#endif

/* One search among keys: `inside` tells which of them are. */
static inline void NAME(found)(struct search *s, const double *all, uint32_t inside, int64_t place) {
    for (; inside; inside &= inside - 1) {
        int at = lowest_bit(inside);
        double key = all[at];
        s->least = key < s->least ? key : s->least;
        s->most = key > s->most ? key : s->most;
        if (s->bins) s->bins[(bits_of_double(key) - s->first) >> s->shift]++;
        if (s->stored < s->room) {
            s->found[s->stored] = key;
            s->places[s->stored++] = place + at;
        }
    }
}

/* One search's share of elements from `at` on, a multiple of SUMS; `place` is that of the first. `narrow`: keys are rounded
 * to floats. */
FN void NAME(look_at)(struct search *s, const double *base, const void *row, int type, int64_t at, int64_t count,
                      int64_t place, int narrow) {
    D high = NAME(all)(s->high), low = NAME(all)(s->low);
    int64_t above = 0, inside = 0;
    for (int64_t k = 0; k < count; k += WIDTH) {
        D keys = NAME(size)(NAME(sub)(NAME(from)(row, type, at + k), NAME(get)(base + k)));
        if (narrow) keys = NAME(doubles)(NAME(floats)(keys));
        uint32_t over = NAME(at_least)(keys, high), in = NAME(at_least)(keys, low) & ~over;
        above += count_bits(over);
        if (!in) continue;
        inside += count_bits(in);
        if (!s->room && !s->bins) continue;
        double all[WIDTH];
        NAME(put)(all, keys);
        NAME(found)(s, all, in, place + k);
    }
    s->above += above;
    s->inside += inside;
    s->blocks[place / SPAN] += inside;
}

#if ISA != ISA_ANY
/* The same for 16-bit rows of one type, in floats. */
FN void NAME(look_at_narrow)(struct search *s, const float *base, const void *row, int type, int64_t at, int64_t count,
                             int64_t place) {
    Q high = NAME(q_all)((float)s->high), low = NAME(q_all)((float)s->low);
    int64_t above = 0, inside = 0;
    for (int64_t k = 0; k < count; k += QUICK) {
        Q keys = NAME(q_size)(NAME(q_sub)(NAME(q_from)((const uint16_t *)row + at + k, type), NAME(q_get)(base + k)));
        uint32_t over = NAME(q_at_least)(keys, high), in = NAME(q_at_least)(keys, low) & ~over;
        above += count_bits(over);
        if (!in) continue;
        inside += count_bits(in);
        if (!s->room && !s->bins) continue;
        float few[QUICK];
        double all[QUICK];
        NAME(q_put_floats)(few, keys);
        for (int j = 0; j < QUICK; j++) all[j] = few[j];
        NAME(found)(s, all, in, place + k);
    }
    s->above += above;
    s->inside += inside;
    s->blocks[place / SPAN] += inside;
}
#endif

/* Every search of a piece that begins at `place` of its tensor, of `run` elements out of every `step`; searches by row. */
TARGET static void NAME(look)(const void *const *rows, const int32_t *types, int64_t count, int64_t place, int64_t run,
                              int64_t step, struct search *searches, int64_t number) {
    double base[CHUNK], x[SUMS];
    for (int64_t at = 0; at < count; at += step) {
        int64_t size = least(run, count - at), whole = size / SUMS * SUMS;
        ahead(rows[0], types[0], at + 2 * step, size);
        NAME(load)(rows[0], types[0], at, size, base);
#if ISA != ISA_ANY
        float narrow[CHUNK];
        if (types[0] <= FP16)
            for (int64_t k = 0; k < whole; k += QUICK)
                NAME(q_put_floats)(narrow + k, NAME(q_from)((const uint16_t *)rows[0] + at + k, types[0]));
#endif
        for (int64_t s = 0; s < number; s++) {
            struct search *one = searches + s;
            const void *row = rows[one->row];
            int type = types[one->row];
            ahead(row, type, at + 2 * step, size);
#if ISA != ISA_ANY
            if (one->narrow && type == BF16)
                NAME(look_at_narrow)(one, narrow, row, BF16, at, whole, place + at);
            else if (one->narrow)
                NAME(look_at_narrow)(one, narrow, row, FP16, at, whole, place + at);
            else
#endif
                NAME(look_at)(one, base, row, type, at, whole, place + at, (int)one->narrow);
            if (whole == size) continue;
            NAME(load)(row, type, at + whole, size - whole, x);
            for (int64_t k = size - whole; k < SUMS; k++) x[k] = base[whole + k] = NAN; /* no key */
            NAME(look_at)(one, base + whole, x, FP64, 0, SUMS, place + at + whole, (int)one->narrow);
        }
    }
}

/* Words of counters from `first` on in Philox 4x32-10. */
FN void NAME(random_words)(uint64_t first, const uint32_t *key, U *words) {
    U a = NAME(u_count)(first), b = NAME(u_high)(a), c = NAME(u_all)(0), d = c;
    U m = NAME(u_all)(0xD2511F53), n = NAME(u_all)(0xCD9E8D57);
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        U p = NAME(u_product)(a, m), q = NAME(u_product)(c, n);
        a = NAME(u_xor)(NAME(u_xor)(NAME(u_high)(q), b), NAME(u_all)(k0));
        c = NAME(u_xor)(NAME(u_xor)(NAME(u_high)(p), d), NAME(u_all)(k1));
        b = q;
        d = p;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = a;
    words[1] = b;
    words[2] = c;
    words[3] = d;
}

/* Differences of BATCH elements that stay, times what they count; the rest becomes zero. */
FN void NAME(keep)(const struct part *part, int narrow, const D *base, const void *row, int type, int64_t at, int64_t place, D *odd,
                   D *all, D *held) {
    D low = NAME(all)(place < part->low_until ? part->low : part->above_low);
    D high = NAME(all)(place < part->high_until ? part->high : part->above_high);
    D weight = NAME(all)(part->weight), scale = NAME(all)(part->scale);
    int mixed = (place < part->low_until && part->low_until < place + BATCH) ||
                (place < part->high_until && part->high_until < place + BATCH);
    int all_below = isnan(part->high) && isnan(part->above_high);
    int random = part->chance < 1.0 || part->chances;
    U limit = NAME(u_all)((uint64_t)ceil(part->chance * 0x1p32)), words[4];
#pragma GCC unroll 8
    for (int v = 0; v < BATCH / WIDTH; v++) {
        int64_t k = v * WIDTH;
        /* Element e has word e % BATCH / 8 of counter e / BATCH * 8 + e % 8: a word has the counters of 8 elements, which
         * are drawn anew where the vector has fewer. */
        if (random && (WIDTH < 8 || v == 0)) NAME(random_words)((uint64_t)(place / 4 + k % 8), part->key, words);
        D x = NAME(sub)(NAME(from)(row, type, at + k), base[v]);
        if (!narrow) odd[v] = NAME(add)(odd[v], NAME(sub)(x, x));
        if (mixed) {
            double lows[WIDTH], highs[WIDTH];
            for (int j = 0; j < WIDTH; j++) {
                lows[j] = place + k + j < part->low_until ? part->low : part->above_low;
                highs[j] = place + k + j < part->high_until ? part->high : part->above_high;
            }
            low = NAME(get)(lows);
            high = NAME(get)(highs);
        }
        if (all_below)
            x = NAME(where_from)(x, NAME(size)(x), low);
        else
            x = NAME(where_between)(x, NAME(size)(x), low, high);
        if (random) {
            if (part->chances) {
                uint64_t limits[WIDTH];
                for (int j = 0; j < WIDTH; j++) limits[j] = (uint64_t)ceil(part->chances[at + k + j] * 0x1p32);
                memcpy(&limit, limits, sizeof limit);
                if (part->inverse)
                    x = NAME(mul)(x, NAME(quotient)(NAME(all)(1.0), NAME(get)(part->chances + at + k)));
            }
            x = NAME(where_below)(x, words[k / 8], limit);
        }
        if (part->scale != 1.0) x = NAME(mul)(scale, x);
        if (part->weight != 1.0) x = NAME(mul)(weight, x);
        all[v] = NAME(add)(all[v], x);
        held[v] = x;
    }
}

/* The first of some elements at which an input or the output is not finite; -1 where only a difference that was dropped is
 * not. */
TARGET static int64_t NAME(first_odd)(const void *const *rows, const int32_t *types, int64_t n, int64_t at, int64_t count,
                                      const void *out, int32_t out_type) {
    for (int64_t k = 0; k < count; k++) {
        int fine = is_finite(out, out_type, k);
        for (int64_t i = 0; i < n; i++) fine &= is_finite(rows[i], types[i], at + k);
        if (!fine) return k;
    }
    return -1;
}

/* Whether any of BATCH bfloat16 numbers is not finite. */
FN int NAME(any_odd)(const uint16_t *x) {
#if ISA == ISA_AVX512
    __m512i exponent = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512(_mm512_loadu_si512(x), exponent), exponent) != 0;
#else
    uint16_t odd = 0;
    for (int k = 0; k < BATCH; k++) odd |= (x[k] & 0x7f80) == 0x7f80;
    return odd;
#endif
}

enum { NAME(BATCH_VECTORS) = BATCH / WIDTH };

/* BATCH elements of the output. Returns whether all inputs are finite and nothing overflows. */
FN int NAME(trim_batch)(const void *const *rows, const int32_t *types, int narrow, int64_t n, int64_t at, int64_t place,
                        const struct part *parts, const struct sum *sum, D *held, void *out, int32_t out_type) {
    D base[NAME(BATCH_VECTORS)], all[NAME(BATCH_VECTORS)], odd[NAME(BATCH_VECTORS)];
#pragma GCC unroll 8
    for (int v = 0; v < NAME(BATCH_VECTORS); v++) {
        base[v] = NAME(from)(rows[0], narrow ? BF16 : types[0], at + v * WIDTH);
        all[v] = odd[v] = NAME(zero)();
    }
#pragma GCC unroll 4
    for (int64_t i = 1; i < n; i++)
        NAME(keep)(parts + i - 1, narrow, base, rows[i], narrow ? BF16 : types[i], at, place, odd, all,
                   held + (i - 1) * NAME(BATCH_VECTORS));
    int fine = 1;
    for (int64_t i = 0; narrow && i < n; i++) fine &= !NAME(any_odd)((const uint16_t *)rows[i] + at);
    D tiny = NAME(all)(sum->tiny), lambda = NAME(all)(sum->lambda), most = NAME(all)(sum->most);
    D divisor = NAME(all)(sum->divisor);
#pragma GCC unroll 8
    for (int v = 0; v < NAME(BATCH_VECTORS); v++) {
        D result = all[v];
        if (sum->consensus) {
            D weights = NAME(zero)();
            result = NAME(zero)();
#pragma GCC unroll 4
            for (int64_t i = 1; i < n; i++) {
                D x = held[(i - 1) * NAME(BATCH_VECTORS) + v];
                result = NAME(add)(result, NAME(where_agrees)(x, x, all[v]));
                weights = NAME(add)(weights, NAME(where_agrees)(NAME(all)(parts[i - 1].weight), x, all[v]));
            }
            if (sum->normalize) result = NAME(quotient)(result, NAME(or_one)(weights, tiny));
        } else if (sum->divisor != 1.0) {
            result = NAME(quotient)(result, divisor);
        }
        result = NAME(moved)(base[v], NAME(mul)(lambda, result));
        fine &= NAME(within)(NAME(size)(result), most);
        if (!narrow) fine &= NAME(within)(odd[v], most);
        NAME(round_to)(result, (char *)out + v * WIDTH * size_of(out_type), out_type);
    }
    return fine;
}

/* out = w_0 + lambda * (what the differences come to), for a piece that begins at `place`. Returns -1, or the index of the
 * first element at which an input or the output is not finite. */
TARGET static int64_t NAME(trim)(const void *const *rows, const int32_t *types, int64_t n, int64_t count, int64_t place,
                                 const struct part *parts, const struct sum *sum, double *scratch, char *out,
                                 int32_t out_type) {
    int64_t item = size_of(out_type), at = 0;
    int narrow = out_type == BF16;
    D *held = (D *)(((uintptr_t)scratch + 63) / 64 * 64);
    for (int64_t i = 0; i < n; i++) narrow &= types[i] == BF16;
    D few[4 * NAME(BATCH_VECTORS)];
    for (; at + BATCH <= count; at += BATCH) {
        char *to = out + at * item;
        int fine;
        for (int64_t i = 0; i < n; i++) ahead(rows[i], types[i], at + 64 * BATCH, BATCH);
        if (narrow && n == 3)
            fine = NAME(trim_batch)(rows, types, 1, 3, at, place + at, parts, sum, few, to, BF16);
        else if (narrow && n == 4)
            fine = NAME(trim_batch)(rows, types, 1, 4, at, place + at, parts, sum, few, to, BF16);
        else
            fine = NAME(trim_batch)(rows, types, 0, n, at, place + at, parts, sum, held, to, out_type);
        if (fine || sum->pass_nonfinite) continue;
        int64_t k = NAME(first_odd)(rows, types, n, at, BATCH, to, out_type);
        if (k >= 0) return at + k;
    }
    if (at == count) return -1;
    /* What is left, filled up with zeros: in `held`, behind the parts. */
    const void **ends = (const void **)((double *)held + n * BATCH);
    double *filled = (double *)held + n * BATCH + n;
    struct part *own = (struct part *)(filled + 2 * n * BATCH);
    char last[BATCH * 8];
    for (int64_t i = 0; i < n; i++) {
        ends[i] = memset(filled + i * BATCH, 0, BATCH * 8);
        memcpy(filled + i * BATCH, (const char *)rows[i] + at * size_of(types[i]), (size_t)((count - at) * size_of(types[i])));
        if (i == 0) continue;
        own[i - 1] = parts[i - 1];
        if (!own[i - 1].chances) continue;
        double *chances = filled + (n + i) * BATCH;
        memset(chances, 0, BATCH * 8);
        own[i - 1].chances = memcpy(chances, parts[i - 1].chances + at, (size_t)(count - at) * 8);
    }
    int fine = NAME(trim_batch)(ends, types, 0, n, 0, place + at, own, sum, held, last, out_type);
    memcpy(out + at * item, last, (size_t)((count - at) * item));
    if (fine || sum->pass_nonfinite) return -1;
    int64_t k = NAME(first_odd)(rows, types, n, at, count - at, last, out_type);
    return k < 0 ? -1 : at + k;
}
#undef U
