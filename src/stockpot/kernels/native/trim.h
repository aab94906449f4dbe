/* Sums of trimmed differences from a reference, for one instruction set (see lanes.h): which are kept, by magnitude and
 * at random, and what they come to. _trim_plain.py defines the same bits with numpy.
 *
 * A difference's key is its magnitude: of two 16-bit numbers the difference rounded to a float, else to a double. */

/* Elements with what fills them up. */
static inline int64_t NAME(filled)(int64_t count) { return (count + SUMS - 1) / SUMS * SUMS; }

/* Whether there is a NaN or Inf among doubles that are filled up. */
FN int NAME(any_odd)(const double *x, int64_t count) {
    D most = NAME(all)(0x1.fffffffffffffp+1023), sum = NAME(zero)();
    for (int64_t k = 0; k < count; k += WIDTH) {
        D one = NAME(get)(x + k);
        sum = NAME(add)(sum, NAME(sub)(one, one));
    }
    return !NAME(within)(sum, most);
}

/* Keys of `count` (at most CHUNK) differences from `start` on, and the differences themselves, filled up with zeros. */
FN void NAME(keys_of)(const void *const *rows, const int32_t *types, int64_t i, int64_t start, int64_t count,
                      const double *restrict base, double *restrict x, double *restrict key) {
    NAME(load)(rows[i], types[i], start, count, x);
    count = NAME(filled)(count);
    if (types[0] <= FP16 && types[i] <= FP16) {
        for (int64_t k = 0; k < count; k++) key[k] = (double)fabsf((float)x[k] - (float)base[k]);
        for (int64_t k = 0; k < count; k++) x[k] = x[k] - base[k];
    } else {
        for (int64_t k = 0; k < count; k++) x[k] = x[k] - base[k];
        for (int64_t k = 0; k < count; k++) key[k] = fabs(x[k]);
    }
}

/* Which of 16 keys are at least the limit, as bits. */
FN uint32_t NAME(at_least)(const double *key, double limit) {
#if ISA == ISA_AVX512
    D all = _mm512_set1_pd(limit);
    return (uint32_t)_mm512_cmp_pd_mask(_mm512_loadu_pd(key), all, _CMP_GE_OQ) |
           (uint32_t)_mm512_cmp_pd_mask(_mm512_loadu_pd(key + 8), all, _CMP_GE_OQ) << 8;
#elif ISA == ISA_AVX2
    uint32_t found = 0;
    D all = _mm256_set1_pd(limit);
    for (int v = 0; v < 4; v++)
        found |= (uint32_t)_mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(key + 4 * v), all, _CMP_GE_OQ)) << 4 * v;
    return found;
#else
    uint32_t found = 0;
    for (int k = 0; k < 16; k++) found |= (uint32_t)(key[k] >= limit) << k;
    return found;
#endif
}

/* One search's share of a chunk of keys; those behind `count` are negative. */
FN void NAME(look_at)(struct search *s, const double *key, int64_t count, int64_t place) {
    int64_t above = 0, inside = 0;
    for (int64_t k = 0; k < count; k += 16) {
        uint32_t high = NAME(at_least)(key + k, s->high), in = NAME(at_least)(key + k, s->low) & ~high;
        above += count_bits(high);
        inside += count_bits(in);
        for (; in; in &= in - 1) {
            int64_t at = k + lowest_bit(in);
            double found = key[at];
            s->least = found < s->least ? found : s->least;
            s->most = found > s->most ? found : s->most;
            if (s->bins) s->bins[(bits_of_double(found) - s->first) >> s->shift]++;
            if (s->stored < s->room) {
                s->found[s->stored] = found;
                s->places[s->stored++] = place + at;
            }
        }
    }
    s->above += above;
    s->inside += inside;
    s->blocks[place / SPAN] += inside;
}

/* Every search of a piece that begins at `place` of its tensor, of `run` elements out of every `step`; searches by row.
 * Returns whether a key is not finite. */
TARGET static int NAME(look)(const void *const *rows, const int32_t *types, int64_t count, int64_t place, int64_t run,
                             int64_t step, struct search *searches, int64_t number) {
    double base[CHUNK + WIDEST], x[CHUNK + WIDEST], key[CHUNK + WIDEST];
    int odd = 0;
    for (int64_t at = 0; at < count; at += step) {
        int64_t size = least(run, count - at), row = -1;
        NAME(load)(rows[0], types[0], at, size, base);
        for (int64_t s = 0; s < number; s++) {
            if (searches[s].row != row) {
                row = searches[s].row;
                NAME(keys_of)(rows, types, row, at, size, base, x, key);
                odd |= NAME(any_odd)(key, NAME(filled)(size));
                for (int64_t k = size; k < NAME(filled)(size); k++) key[k] = -1.0;
            }
            NAME(look_at)(&searches[s], key, size, place + at);
        }
    }
    return odd;
}

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
FN D NAME(where_below)(D x, U a, U limit) {
    return _mm512_maskz_mov_pd(_mm512_cmplt_epu64_mask(_mm512_and_si512(a, _mm512_set1_epi64(0xffffffff)), limit), x);
}
/* a where x, or where it is NaN, has the sign of s (zero: positive) and is not zero; else 0. */
FN D NAME(where_agrees)(D a, D x, D s) {
    __mmask8 up = _mm512_cmp_pd_mask(s, _mm512_setzero_pd(), _CMP_GE_OQ);
    __mmask8 not_up = _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_LE_OQ);
    __mmask8 not_down = _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_GE_OQ);
    return _mm512_maskz_mov_pd((__mmask8)((up & ~not_up) | (~up & ~not_down)), a);
}
#elif ISA == ISA_AVX2
#define U __m256i
FN D NAME(where_agrees)(D a, D x, D s) {
    D zero = _mm256_setzero_pd(), up = _mm256_cmp_pd(s, zero, _CMP_GE_OQ);
    D is_up = _mm256_cmp_pd(x, zero, _CMP_NLE_UQ), is_down = _mm256_cmp_pd(x, zero, _CMP_NGE_UQ);
    return _mm256_and_pd(a, _mm256_or_pd(_mm256_and_pd(up, is_up), _mm256_andnot_pd(up, is_down)));
}
FN U NAME(u_all)(uint64_t x) { return _mm256_set1_epi64x((long long)x); }
FN U NAME(u_count)(uint64_t first) {
    return _mm256_add_epi64(_mm256_set1_epi64x((long long)first), _mm256_set_epi64x(3, 2, 1, 0));
}
FN U NAME(u_product)(U a, U b) { return _mm256_mul_epu32(a, b); }
FN U NAME(u_high)(U a) { return _mm256_srli_epi64(a, 32); }
FN U NAME(u_xor)(U a, U b) { return _mm256_xor_si256(a, b); }
FN D NAME(where_below)(D x, U a, U limit) {
    U below = _mm256_cmpgt_epi64(limit, _mm256_and_si256(a, _mm256_set1_epi64x(0xffffffff)));
    return _mm256_and_pd(_mm256_castsi256_pd(below), x);
}
#else
#define U uint64_t
FN D NAME(where_agrees)(D a, D x, D s) { return (s >= 0.0 ? x <= 0.0 : x >= 0.0) ? 0.0 : a; }
FN U NAME(u_all)(uint64_t x) { return x; }
FN U NAME(u_count)(uint64_t first) { return first; }
FN U NAME(u_product)(U a, U b) { return (a & 0xffffffff) * (b & 0xffffffff); }
FN U NAME(u_high)(U a) { return a >> 32; }
FN U NAME(u_xor)(U a, U b) { return a ^ b; }
FN D NAME(where_below)(D x, U a, U limit) { return (a & 0xffffffff) < limit ? x : 0.0; }
#endif

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

/* What of a chunk of differences stays, times its factor; the rest becomes zero. */
FN void NAME(keep)(const struct part *part, int64_t place, int64_t count, const double *restrict key, double *restrict x,
                   const double *chances) {
    for (int64_t from = 0, to; from < count; from = to) {
        /* Up to where a magnitude that is a limit itself changes sides. */
        int64_t low_until = part->low_until - place, high_until = part->high_until - place;
        to = count;
        if (low_until > from) to = least(to, low_until);
        if (high_until > from) to = least(to, high_until);
        double low = from < low_until ? part->low : part->above_low;
        double high = from < high_until ? part->high : part->above_high;
        /* NaN is kept: it is not to vanish. */
        for (int64_t k = from; k < to; k++) x[k] = !(key[k] < low) & !(key[k] >= high) ? x[k] : 0.0;
    }
    if (part->chance >= 1.0 && !chances) return;
    /* Element k of a chunk has word k / (CHUNK / 4) of counter k % (CHUNK / 4). */
    uint64_t whole = (uint64_t)ceil(part->chance * 0x1p32);
    U words[4], limit = NAME(u_all)(whole);
    for (int64_t j = 0; j < CHUNK / 4 && j < count; j += WIDTH) {
        NAME(random_words)((uint64_t)(place / 4 + j), part->key, words);
        for (int64_t w = 0, k = j; w < 4 && k < count; w++, k += CHUNK / 4) {
            U own = limit;
            if (chances || k + WIDTH > count) {
                uint64_t limits[WIDTH] = {0};
                for (int64_t at = k; at < least(k + WIDTH, count); at++) {
                    limits[at - k] = chances ? (uint64_t)ceil(chances[at] * 0x1p32) : whole;
                    if (chances && part->inverse) x[at] *= 1.0 / chances[at];
                }
                memcpy(&own, limits, sizeof own);
            }
            NAME(put)(x + k, NAME(where_below)(NAME(get)(x + k), words[w], own));
        }
    }
}

/* Adds what of a part has the sign of all parts together (zero is positive), and its weight there; NaN always. */
FN void NAME(add_agreeing)(const double *x, double weight, const double *all, int64_t count, double *result,
                           double *weights) {
    for (int64_t k = 0; k < count; k += WIDTH) {
        D own = NAME(get)(x + k);
        NAME(put)(result + k, NAME(add)(NAME(get)(result + k), NAME(where_agrees)(own, own, NAME(get)(all + k))));
        NAME(put)(weights + k,
                  NAME(add)(NAME(get)(weights + k), NAME(where_agrees)(NAME(all)(weight), own, NAME(get)(all + k))));
    }
}

/* out = w_0 + lambda * (what the differences come to), for a piece that begins at `place`. Returns -1, or the index of the
 * first element at which an input or the output is not finite. */
TARGET static int64_t NAME(trim)(const void *const *rows, const int32_t *types, int64_t n, int64_t count, int64_t place,
                                 const struct part *parts, const struct sum *sum, double *restrict held, char *out,
                                 int32_t out_type) {
    double base[CHUNK + WIDEST], key[CHUNK + WIDEST], all[CHUNK], weights[CHUNK], result[CHUNK];
    int64_t item = size_of(out_type);
    for (int64_t at = 0; at < count; at += CHUNK) {
        int64_t size = least(CHUNK, count - at);
        int64_t end = NAME(filled)(size);
        NAME(load)(rows[0], types[0], at, size, base);
        int odd = NAME(any_odd)(base, end);
        for (int64_t k = 0; k < end; k++) all[k] = 0.0;
        for (int64_t i = 1; i < n; i++) {
            double *x = held + (i - 1) * (CHUNK + WIDEST), weight = parts[i - 1].weight;
            const struct part *part = parts + i - 1;
            NAME(keys_of)(rows, types, i, at, size, base, x, key);
            odd |= NAME(any_odd)(x, end);
            NAME(keep)(part, place + at, size, key, x, part->chances ? part->chances + at : NULL);
            double scale = part->scale;
            for (int64_t k = 0; k < end; k++) {
                x[k] = weight * (scale * x[k]);
                all[k] += x[k];
            }
        }
        if (sum->consensus) {
            for (int64_t k = 0; k < end; k++) result[k] = weights[k] = 0.0;
            for (int64_t i = 1; i < n; i++)
                NAME(add_agreeing)(held + (i - 1) * (CHUNK + WIDEST), parts[i - 1].weight, all, end, result, weights);
            if (sum->normalize) {
                double tiny = sum->tiny;
                for (int64_t k = 0; k < end; k++) weights[k] = fabs(weights[k]) > tiny ? weights[k] : 1.0;
                for (int64_t k = 0; k < end; k++) result[k] /= weights[k];
            }
        } else if (sum->divisor == 1.0) {
            for (int64_t k = 0; k < end; k++) result[k] = all[k];
        } else {
            double divisor = sum->divisor;
            for (int64_t k = 0; k < end; k++) result[k] = all[k] / divisor;
        }
        double lambda = sum->lambda;
        for (int64_t k = 0; k < end; k++) {
            double step = lambda * result[k];
            result[k] = step == 0.0 ? base[k] : base[k] + step;
        }
        double most = sum->most;
        int over = 0;
        for (int64_t k = 0; k < end; k += WIDTH) over |= !NAME(within)(NAME(size)(NAME(get)(result + k)), NAME(all)(most));
        char *to = out + at * item;
        int64_t k = 0;
        for (; k + WIDTH <= size; k += WIDTH) NAME(round_to)(NAME(get)(result + k), to + k * item, out_type);
        if (k < size) {
            char rest[WIDEST * 8];
            NAME(round_to)(NAME(get)(result + k), rest, out_type);
            memcpy(to + k * item, rest, (size_t)((size - k) * item));
        }
        if ((odd || over) && !sum->pass_nonfinite)
            for (k = 0; k < size; k++) {
                int bad = !(fabs(result[k]) <= most);
                for (int64_t i = 0; i < n; i++) bad |= !is_finite(rows[i], types[i], at + k);
                if (bad) return at + k;
            }
    }
    return -1;
}
#undef U
