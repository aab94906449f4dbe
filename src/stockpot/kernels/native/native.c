/* Inner products and linear combinations of rows of floats, on the CPU.
 *
 * Inner products are IEEE double, in an order that is part of the definition; combinations are correctly rounded, by
 * whatever way proves it. No product is fused with a sum unless either rounding will do (compile with
 * -ffp-contract=off): the bits depend on the inputs alone, not on the instruction set, the compiler or the number of
 * threads. _torch.py defines the same bits with torch.
 *
 * Plain C, no Python: called through ctypes, which lets other threads run meanwhile.
 */
#define _POSIX_C_SOURCE 200809L
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum { BF16, FP16, FP32, FP64 };

/* The order of a sum: element k of a chunk goes to running sum k % SUMS, one after the other; running sums are added
 * by halves; chunks are added in pairs of neighbours, then pairs of pairs. */
enum { SUMS = 16, CHUNK = 512, LEVELS = 8, WIDEST = 8 };
/* Rows whose products are summed in registers: all at once, or by tiles. */
enum { FEW = 4, TILE = 4 };
/* Vectors that are mixed at once: of doubles, of floats. */
enum { VECTORS = 4, FLOATS = 4 };
/* Vectors of columns whose sums over a rank are in registers. */
enum { VECTORS_OF_COLUMNS = 8, COLUMNS = 64 };

/* Sums that stay below cannot overflow the output: nine tenths of its largest number. */
static const double largest[] = {0x1.ccp+127, 58982.0, 0x1.ccp+127, 0x1.ccp+1023};

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t size_of(int type) { return type <= FP16 ? 2 : type == FP32 ? 4 : 8; }

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint64_t bits_of_double(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    return bits;
}

static inline int lowest_bit(uint32_t bits) {
#ifdef __GNUC__
    return __builtin_ctz(bits);
#else
    int k = 0;
    while (!(bits >> k & 1)) k++;
    return k;
#endif
}

static inline double double_of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

/* A float that is NaN and stays so in 16 bits: rounding up one whose lower bits are all set would make -0 of it. */
enum { PLAIN_NAN = 0x7fc00000 };

/* |value| < 2^-126, or NaN. */
static uint16_t small_bf16(double value) {
    if (value != value) return 0x7fc0;
    return (uint16_t)((uint16_t)rint(fabs(value) * 0x1p133) | (signbit(value) ? 0x8000 : 0));
}

static inline uint64_t pattern(const void *row, int type, int64_t k) {
    if (type <= FP16) return ((const uint16_t *)row)[k];
    return type == FP32 ? ((const uint32_t *)row)[k] : ((const uint64_t *)row)[k];
}

static inline int is_finite(const void *row, int type, int64_t k) {
    static const uint64_t exponent[] = {0x7f80, 0x7c00, 0x7f800000, 0x7ff0000000000000};
    return (pattern(row, type, k) & exponent[type]) != exponent[type];
}

/* Whether products of a coefficient with any 16-bit number neither overflow a float nor vanish. */
static inline int fits_float(double weight) {
    return weight == 0.0 || (fabs(weight) >= 0x1p-15 && fabs(weight) <= 0x1p60);
}

/* Farther above zero than any `steps`: no sum with a zero among its inputs counts as exact, since the sign of zero follows
 * a rule of its own. */
#define LARGER_THAN_ZERO 0x1p-97f

/* What tells, for some weights, how exact sum_i a_i x_i is in double, x_i floats. */
struct ease {
    double reach;  /* its error is at most this times the largest |x_i| */
    float most;    /* no sum overflows a float where all |x_i| are at most this */
    int32_t steps; /* it is exact where the bits of the largest |x_i| are at most so many above those of the smallest */
    /* The same for the weights' first and second parts, which lie in pairs in `parts`. */
    double *parts, reach_of_second;
    int32_t steps_of_first;
};

/* A sum of weights that are multiples of `grain`, `size` in all, times x_i: every partial sum is a multiple of grain times
 * the last bit of the smallest x_i, and below size times twice the largest. A double has room for 53 bits. */
static int32_t exact_steps(double size, double grain) {
    double ratio = size / grain;
    if (!(ratio >= 1.0 && ratio < 0x1p28 && grain > 0x1p-900)) return -1;
    return (28 - ilogb(ratio)) << 23;
}

/* The value of the last bit of a number; Inf of zero. */
static double last_bit(double value) {
    uint64_t bits = bits_of_double(fabs(value));
    if (value == 0.0) return INFINITY;
    return bits << 12 ? fabs(value) - double_of_bits(bits & (bits - 1)) : fabs(value);
}

/* The same for S x_0 - sum_i a_i (x_0 - x_i) in floats, the x_i of 16 bits: 11 digits at most, 24 places. */
static int32_t exact_steps_of_halves(const double *weights, int64_t n, double total) {
    double size = fabs(total), grain = last_bit(total);
    for (int64_t i = 1; i < n; i++) {
        grain = fmin(grain, last_bit(weights[i]));
        size += 2.0 * fabs(weights[i]);
    }
    double ratio = size / grain;
    if (!(ratio >= 1.0 && ratio < 0x1p12)) return -1;
    return (12 - ilogb(ratio)) << 23;
}

static struct ease ease_of(const double *weights, int64_t n, double *parts) {
    double size = 0.0, grain = INFINITY, of_first = 0.0, of_second = 0.0;
    for (int64_t i = 0; i < n; i++) {
        grain = fmin(grain, last_bit(weights[i]));
        size += fabs(weights[i]);
    }
    double coarse = size > 0x1p-900 && size < 0x1p900 ? ldexp(1.0, ilogb(size) - 13) : 1.0;
    for (int64_t i = 0; i < n; i++) {
        parts[2 * i] = rint(weights[i] / coarse) * coarse;
        parts[2 * i + 1] = weights[i] - parts[2 * i];
        of_first += fabs(parts[2 * i]);
        of_second += fabs(parts[2 * i + 1]);
    }
    /* Products err by 2^-53 of all of them together, each of n sums by 2^-53 of no more. */
    double steps = (double)(2 * n + 8) * 0x1p-53;
    float most = (float)fmin(largest[FP32] / size, FLT_MAX);
    struct ease found = {steps * size, most, exact_steps(size, grain), parts, steps * of_second, exact_steps(of_first, coarse)};
    return found;
}

/* Where all inputs that have a part hold the same bits, those bits: signs of zeros included. */
static void keep_agreed(const void *const *rows, int64_t n, int64_t start, int64_t stop, const double *weights, void *out,
                        int type) {
    int64_t first = 0, size = size_of(type);
    while (weights[first] == 0.0) first++;
    for (int64_t k = start; k < stop; k++) {
        uint64_t kept = pattern(rows[first], type, k), differs = 0;
        for (int64_t i = first + 1; i < n; i++)
            if (weights[i] != 0.0) differs |= kept ^ pattern(rows[i], type, k);
        if (!differs) memcpy((char *)out + k * size, (const char *)rows[first] + k * size, (size_t)size);
    }
}

static inline int64_t count_bits(uint32_t bits) {
#ifdef __GNUC__
    return __builtin_popcount(bits);
#else
    int64_t found = 0;
    for (; bits; bits &= bits - 1) found++;
    return found;
#endif
}

/* Elements to a count of equals; elements that are trimmed at once. */
enum { SPAN = 1 << 16, BATCH = 32 };

/* A search for the key of some rank among a row's: how many keys are `above` (at least `high`) and `inside` (at least
 * `low`, below `high`), the least and most of these, how many in each span of the tensor; the first `room` of them with
 * their places; and, where there are bins, how many in each, by their bits from `first` on without the last `shift`.
 * `narrow`: both rows are of 16 bits, and the key is their difference in floats. */
struct search {
    int64_t row, narrow;
    double low, high, least, most;
    int64_t above, inside, room, stored, first, shift;
    double *found;
    int64_t *places, *blocks;
    uint32_t *bins;
};

/* What of a row's differences is kept: keys from `low` to below `high` (both move to `above_low` and `above_high`, the
 * next numbers, from a place on: of equal keys the first are larger); of these, by chance; and what it is worth. */
struct part {
    double weight, scale, low, above_low, high, above_high, chance;
    int64_t low_until, high_until, inverse;
    const double *chances;
    uint32_t key[2];
};

/* How the parts are added: `consensus`, of each element those that have the sign of the sum; `normalize`, divided by the
 * weights of those; else divided by `divisor`. `most`: the largest that can be rounded to the output. */
struct sum {
    double lambda, divisor, tiny, most;
    int64_t consensus, normalize, pass_nonfinite;
};

/* Elements that are needed soon: a request for them costs nothing, wherever they lie. */
static inline void ahead(const void *row, int type, int64_t start, int64_t count) {
#ifdef __GNUC__
    const char *from = (const char *)row + start * size_of(type);
    for (int64_t at = 0; at < count * size_of(type); at += 64) __builtin_prefetch(from + at);
#endif
}

#define ISA_ANY 0
#define ISA_AVX2 1
#define ISA_AVX512 2

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
/* What went past the caches is there for every thread from here on. */
static inline void all_stored(void) { _mm_sfence(); }
#define ISA ISA_AVX512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define NAME(x) x##_avx512
#include "lanes.h"
#include "loops.h"
#include "low_rank.h"
#include "trim.h"
#include "undefine.h"
#define ISA ISA_AVX2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define NAME(x) x##_avx2
#include "lanes.h"
#include "loops.h"
#include "low_rank.h"
#include "trim.h"
#include "undefine.h"
#endif
#if !defined(__x86_64__) || !defined(__GNUC__)
static inline void all_stored(void) {}
#endif
#define ISA ISA_ANY
#define TARGET
#define NAME(x) x##_any
#include "lanes.h"
#include "loops.h"
#include "low_rank.h"
#include "trim.h"

/* The best instruction set of this machine: ISA_AVX512, ISA_AVX2 or ISA_ANY. */
int32_t stockpot_isa(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return ISA_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return ISA_AVX2;
#endif
    return ISA_ANY;
}

/* Doubles of scratch that either function needs for n rows. */
int64_t stockpot_scratch(int64_t n) {
    int64_t gram = n * CHUNK + (SUMS + LEVELS + 1) * (n * (n + 1) / 2), mix = (n + 1) * (WIDEST + 1) + 2 * n;
    return gram > mix ? gram : mix;
}

/* Rows may be pages of files. Where such a file became shorter, or its disk fails, touching a page raises SIGBUS, which
 * would end the process: here the call ends instead. */
static __thread sigjmp_buf *volatile landing;
static struct sigaction before;

static void on_lost_page(int signal) {
    if (landing) siglongjmp(*landing, 1);
    sigaction(signal, &before, NULL); /* not in a call of ours: the access is repeated, and whoever was there is told */
}

/* Catch lost pages from now on (1), or leave them to whoever caught them before (0). */
void stockpot_catch_lost_pages(int32_t on) {
    struct sigaction ours, now;
    memset(&ours, 0, sizeof ours);
    ours.sa_handler = on_lost_page;
    ours.sa_flags = SA_NODEFER;
    if (on)
        sigaction(SIGBUS, &ours, &before);
    else if (!sigaction(SIGBUS, NULL, &now) && now.sa_handler == on_lost_page)
        sigaction(SIGBUS, &before, NULL);
}

/* What the functions below return where a page was lost. The fences keep all access to rows between START and END. */
enum { LOST = -2 };
#define START                                                                                                        \
    sigjmp_buf here;                                                                                                 \
    if (sigsetjmp(here, 0)) {                                                                                       \
        landing = NULL;                                                                                              \
        return LOST;                                                                                                 \
    }                                                                                                                \
    landing = &here;                                                                                                 \
    atomic_signal_fence(memory_order_seq_cst)
#define END                                                                                                          \
    atomic_signal_fence(memory_order_seq_cst);                                                                       \
    landing = NULL

#ifdef __x86_64__
#define CALL(name, ...)                                                                                              \
    (isa == ISA_AVX512 ? name##_avx512(__VA_ARGS__) : isa == ISA_AVX2 ? name##_avx2(__VA_ARGS__) : name##_any(__VA_ARGS__))
#else
#define CALL(name, ...) ((void)isa, name##_any(__VA_ARGS__))
#endif

/* Inner products of w_0 and w_0 - w_i (raw: of all w_i), for every `span` elements (at most 2^16; the last span may
 * be shorter): out[span][n][n]. With `zero_nonfinite`, what is not finite counts as zero. */
int32_t stockpot_gram(int32_t isa, const void *const *rows, const int32_t *types, int64_t n, int64_t count,
                      int64_t span, int32_t raw, int32_t zero_nonfinite, double *scratch, double *out) {
    START;
    CALL(gram, rows, types, n, count, span, raw, zero_nonfinite, scratch, out);
    END;
    return 0;
}

/* out = sum_i weights_i w_i, correctly rounded; one row of weights and one total (high and low part of the sum of
 * the weights) for every `span` elements. Returns -1, or the index of the first element at which the output or an
 * input is not finite. With `pass_nonfinite` -1 always: Inf and NaN of what has no part do not spread. `far`:
 * the output is not read again soon, and is written past the caches. */
int64_t stockpot_mix(int32_t isa, const void *const *rows, const int32_t *types, int64_t n, int64_t count, int64_t span,
                     const double *weights, const double *totals, int32_t pass_nonfinite, double *scratch, void *out,
                     int32_t out_type, int32_t far) {
    START;
    int64_t found = CALL(mix, rows, types, n, count, span, weights, totals, pass_nonfinite, scratch, out, out_type, far);
    if (far) all_stored();
    END;
    return found;
}

/* The same for many small tensors (of at most 2^16 elements) in one call: rows[tensor][n], counts[tensor];
 * out[tensor][n][n]. */
int32_t stockpot_gram_many(int32_t isa, const void *const *rows, const int32_t *types, int64_t n, int64_t tensors,
                           const int64_t *counts, int32_t raw, double *scratch, double *out) {
    START;
    for (int64_t t = 0; t < tensors; t++)
        CALL(gram, rows + t * n, types, n, counts[t], counts[t], raw, 0, scratch, out + t * n * n);
    END;
    return 0;
}

/* weights[tensor][n], totals[tensor][2]; outputs one after the other. Returns -1, or the number of the first tensor in
 * which something is not finite. */
int64_t stockpot_mix_many(int32_t isa, const void *const *rows, const int32_t *types, int64_t n, int64_t tensors,
                          const int64_t *counts, const double *weights, const double *totals, double *scratch, void *out,
                          int32_t out_type) {
    char *to = out;
    int64_t found = -1;
    START;
    for (int64_t t = 0; t < tensors && found < 0; t++) {
        if (CALL(mix, rows + t * n, types, n, counts[t], counts[t], weights + t * n, totals + t * 2, 0, scratch, to,
                 out_type, 0) >= 0)
            found = t;
        to += counts[t] * size_of(out_type);
    }
    END;
    return found;
}

/* Index of the first element from start to stop that is Inf or NaN; -1 where there is none. */
int64_t stockpot_first_nonfinite(int32_t isa, const void *row, int32_t type, int64_t start, int64_t stop) {
    START;
    int64_t found = CALL(first_nonfinite, row, type, start, stop);
    END;
    return found;
}

/* Bytes into memory of the caller's own. */
int32_t stockpot_copy(void *to, const void *from, int64_t bytes) {
    START;
    memcpy(to, from, (size_t)bytes);
    END;
    return 0;
}

/* out[i] = row[i] + scale * (left right)[start + i], row-major with `columns` columns; left[rows][rank],
 * right in tiles of COLUMNS columns, tile[rank][COLUMNS], so that a tile's rows are neighbours in the cache. Each
 * element's sum over the rank runs from the first to the last, whatever is asked for beside
 * it. `exact`: products of the factors are exact in double (factors of at most 24 bits), so that fusing changes no bit. */
void stockpot_add_low_rank(int32_t isa, const void *row, int32_t type, double *out, int64_t start, int64_t stop,
                           int64_t columns, int64_t rank, const double *left, const double *right, double scale,
                           int32_t exact) {
    CALL(add_low_rank, row, type, out, start, stop, columns, rank, left, right, scale, exact);
}

/* Searches in a piece that begins at `place`, in `run` elements (at most CHUNK) out of every `step`. NaN is nowhere. */
int32_t stockpot_look(int32_t isa, const void *const *rows, const int32_t *types, int64_t count, int64_t place,
                      int64_t run, int64_t step, struct search *searches, int64_t number) {
    START;
    CALL(look, rows, types, count, place, run, step, searches, number);
    END;
    return 0;
}

/* out = w_0 + lambda * (what the parts of the differences come to), for a piece that begins at `place`, a multiple of
 * CHUNK; `held`: n * (3 * BATCH + 1) + 8 doubles and n parts. Returns -1, or the first index at which something is not finite. */
int64_t stockpot_trim(int32_t isa, const void *const *rows, const int32_t *types, int64_t n, int64_t count, int64_t place,
                      const struct part *parts, const struct sum *sum, double *held, void *out, int32_t out_type) {
    START;
    int64_t found = CALL(trim, rows, types, n, count, place, parts, sum, held, out, out_type);
    END;
    return found;
}
