/* A few doubles at a time, for one instruction set: what loops.h is written in.
 *
 * Included once for each of ISA_AVX512, ISA_AVX2 and ISA_ANY; every name goes through NAME(), every function is compiled
 * for TARGET. All three do the same IEEE operations, so that the bits are the same on every machine.
 */
#define FN static inline __attribute__((always_inline)) TARGET

#if ISA == ISA_AVX512
#define WIDTH 8
#define D __m512d
#define F __m256
#define H __m128i
FN D NAME(zero)(void) { return _mm512_setzero_pd(); }
FN D NAME(all)(double x) { return _mm512_set1_pd(x); }
FN D NAME(get)(const double *p) { return _mm512_loadu_pd(p); }
FN void NAME(put)(double *p, D x) { _mm512_storeu_pd(p, x); }
FN D NAME(add)(D a, D b) { return _mm512_add_pd(a, b); }
FN D NAME(sub)(D a, D b) { return _mm512_sub_pd(a, b); }
FN D NAME(mul)(D a, D b) { return _mm512_mul_pd(a, b); }
FN D NAME(size)(D a) { return _mm512_abs_pd(a); }
FN D NAME(minus)(D a) { return _mm512_xor_pd(a, _mm512_set1_pd(-0.0)); }
/* a * b - c, rounded once. */
FN D NAME(error_of_product)(D a, D b, D c) { return _mm512_fmsub_pd(a, b, c); }
/* c + a * b where the product is exact, so that fusing changes no bit. */
FN D NAME(add_exact_product)(D c, D a, D b) { return _mm512_fmadd_pd(a, b, c); }
/* The same where either rounding will do. */
FN D NAME(add_rounded_product)(D c, D a, D b) { return _mm512_fmadd_pd(a, b, c); }
/* Whether each is at most its limit (NaN is not). */
FN int NAME(within)(D a, D limit) { return _mm512_cmp_pd_mask(a, limit, _CMP_LE_OQ) == 0xff; }
/* a where c > 0, else 0. */
FN D NAME(where_positive)(D a, D c) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(c, _mm512_setzero_pd(), _CMP_GT_OQ), a);
}
/* a where it is finite, else 0. */
FN D NAME(finite_or_zero)(D a) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(_mm512_sub_pd(a, a), _mm512_setzero_pd(), _CMP_EQ_OQ), a);
}
/* a + e, |e| below half a step of a, rounded to odd: rounding it again to fewer bits rounds the exact value. */
FN D NAME(odd)(D a, D e) {
    __m512i bits = _mm512_castpd_si512(a), one = _mm512_set1_epi64(1);
    __mmask8 moved = _mm512_cmp_pd_mask(e, _mm512_setzero_pd(), _CMP_NEQ_UQ) & _mm512_testn_epi64_mask(bits, one);
    __mmask8 apart = _mm512_movepi64_mask(_mm512_xor_si512(bits, _mm512_castpd_si512(e)));
    __m512i step = _mm512_mask_mov_epi64(one, apart, _mm512_set1_epi64(-1));
    return _mm512_castsi512_pd(_mm512_mask_add_epi64(bits, moved, bits, step));
}
/* Whether some a + e, |e| below half a step of a, known up to `error`, may round to either of two floats: where a is
 * half-way and e is not surely anything, and where a is so small that the error counts beside a step of it. */
FN int NAME(undecided)(D a, D e, D error) {
    __m512i low = _mm512_and_epi64(_mm512_castpd_si512(a), _mm512_set1_epi64((1 << 29) - 1));
    __mmask8 tie = _mm512_cmpeq_epi64_mask(low, _mm512_set1_epi64(1 << 28));
    D least = _mm512_max_pd(_mm512_mul_pd(error, _mm512_set1_pd(0x1p55)), _mm512_set1_pd(0x1p-126));
    __mmask8 small = _mm512_cmp_pd_mask(_mm512_abs_pd(a), least, _CMP_LT_OQ);
    return (_mm512_mask_cmp_pd_mask(tie, _mm512_abs_pd(e), error, _CMP_LE_OQ) | small) != 0;
}
/* Cut to the 24 bits of a float, the last of them set where anything was cut. */
FN D NAME(odd_float)(D a) {
    __m512i bits = _mm512_castpd_si512(a), low = _mm512_set1_epi64((1 << 29) - 1);
    __m512i cut = _mm512_andnot_si512(low, bits);
    return _mm512_castsi512_pd(
        _mm512_mask_or_epi64(cut, _mm512_test_epi64_mask(bits, low), cut, _mm512_set1_epi64(1 << 29)));
}
FN D NAME(from_fp32)(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
FN D NAME(from_bf16)(const uint16_t *p) {
    __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
    return _mm512_cvtps_pd(_mm256_castsi256_ps(bits));
}
FN D NAME(from_fp16)(const uint16_t *p) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)));
}
/* All lanes added by halves. */
FN double NAME(sum_of_halves)(D a) {
    __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
FN D NAME(doubles)(F a) { return _mm512_cvtps_pd(a); }
FN F NAME(f_sub)(F a, F b) { return _mm256_sub_ps(a, b); }
FN F NAME(f_from)(const uint16_t *p, int type) {
    __m128i halves = _mm_loadu_si128((const __m128i *)p);
    if (type == FP16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
FN F NAME(floats)(D a) { return _mm512_cvtpd_ps(a); }
FN void NAME(put_floats)(float *p, F a) { _mm256_storeu_ps(p, a); }
FN int NAME(same_floats)(F a, F b) {
    __m256i differs = _mm256_xor_si256(_mm256_castps_si256(a), _mm256_castps_si256(b));
    return _mm256_testz_si256(differs, differs);
}
/* Past the caches, to where a vector fits; 64 bytes likewise. */
FN void NAME(put_floats_far)(float *p, F a) { _mm256_stream_ps(p, a); }
FN void NAME(copy_far)(char *to, const char *from) { _mm512_stream_si512((__m512i *)to, _mm512_loadu_si512(from)); }
/* To nearest, ties to even. */
FN H NAME(bf16)(F a) {
    __m256i bits = _mm256_castps_si256(a), one = _mm256_set1_epi32(1);
    bits = _mm256_mask_mov_epi32(bits, _mm256_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm256_set1_epi32(PLAIN_NAN));
    __m256i up = _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(bits, 16), one), _mm256_set1_epi32(0x7fff));
    return _mm256_cvtepi32_epi16(_mm256_srli_epi32(_mm256_add_epi32(bits, up), 16));
}
FN H NAME(fp16)(F a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FN void NAME(put_halves)(uint16_t *p, H a) { _mm_storeu_si128((__m128i *)p, a); }
FN int NAME(same_halves)(H a, H b) {
    __m128i differs = _mm_xor_si128(a, b);
    return _mm_testz_si128(differs, differs);
}

/* Floats, twice as many: for what 16-bit numbers need to be sure of. */
#define QUICK 16
#define Q __m512
FN Q NAME(q_zero)(void) { return _mm512_setzero_ps(); }
FN void NAME(q_put_floats)(float *p, Q a) { _mm512_storeu_ps(p, a); }
FN Q NAME(q_all)(float x) { return _mm512_set1_ps(x); }
FN Q NAME(q_add)(Q a, Q b) { return _mm512_add_ps(a, b); }
FN Q NAME(q_sub)(Q a, Q b) { return _mm512_sub_ps(a, b); }
FN Q NAME(q_mul)(Q a, Q b) { return _mm512_mul_ps(a, b); }
FN Q NAME(q_size)(Q a) { return _mm512_abs_ps(a); }
FN Q NAME(q_minus)(Q a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
FN int NAME(q_within)(Q a, Q limit) { return _mm512_cmp_ps_mask(a, limit, _CMP_LE_OQ) == 0xffff; }
FN Q NAME(q_where_positive)(Q a, Q c) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(c, _mm512_setzero_ps(), _CMP_GT_OQ), a);
}
/* Magnitudes by their bits: NaN is larger than Inf. `a` has no sign. */
FN Q NAME(q_larger)(Q a, Q b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(_mm512_abs_ps(b))));
}
FN Q NAME(q_smaller)(Q a, Q b) {
    return _mm512_castsi512_ps(_mm512_min_epi32(_mm512_castps_si512(a), _mm512_castps_si512(_mm512_abs_ps(b))));
}
/* Whether the bits of a are at most `steps` above those of b. */
FN int NAME(q_near)(Q a, Q b, int32_t steps) {
    __m512i apart = _mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b));
    return _mm512_cmple_epi32_mask(apart, _mm512_set1_epi32(steps)) == 0xffff;
}
/* x, but 0 where they are. */
FN Q NAME(q_unless_near)(Q x, Q a, Q b, int32_t steps) {
    __m512i apart = _mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b));
    return _mm512_maskz_mov_ps(_mm512_cmpgt_epi32_mask(apart, _mm512_set1_epi32(steps)), x);
}
FN Q NAME(q_get)(const float *p) { return _mm512_loadu_ps(p); }
FN D NAME(q_doubles)(Q a, int part) {
    return _mm512_cvtps_pd(part ? _mm512_extractf32x8_ps(a, 1) : _mm512_castps512_ps256(a));
}
FN Q NAME(q_from)(const uint16_t *p, int type) {
    __m256i halves = _mm256_loadu_si256((const __m256i *)p);
    if (type == FP16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
FN __m256i NAME(q_halves)(Q a, int type) {
    if (type == FP16) return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512i bits = _mm512_castps_si512(a), one = _mm512_set1_epi32(1);
    bits = _mm512_mask_mov_epi32(bits, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(PLAIN_NAN));
    __m512i up = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(bits, 16), one), _mm512_set1_epi32(0x7fff));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, up), 16));
}
/* Rounds both; puts the first; a bit for each lane in which they differ. */
FN uint32_t NAME(q_put)(uint16_t *p, Q a, Q b, int type) {
    __m256i halves = NAME(q_halves)(a, type);
    _mm256_storeu_si256((__m256i *)p, halves);
    return _mm256_cmpneq_epi16_mask(halves, NAME(q_halves)(b, type));
}

#elif ISA == ISA_AVX2
#define WIDTH 4
#define D __m256d
#define F __m128
#define H __m128i
FN D NAME(zero)(void) { return _mm256_setzero_pd(); }
FN D NAME(all)(double x) { return _mm256_set1_pd(x); }
FN D NAME(get)(const double *p) { return _mm256_loadu_pd(p); }
FN void NAME(put)(double *p, D x) { _mm256_storeu_pd(p, x); }
FN D NAME(add)(D a, D b) { return _mm256_add_pd(a, b); }
FN D NAME(sub)(D a, D b) { return _mm256_sub_pd(a, b); }
FN D NAME(mul)(D a, D b) { return _mm256_mul_pd(a, b); }
FN D NAME(size)(D a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
FN D NAME(minus)(D a) { return _mm256_xor_pd(a, _mm256_set1_pd(-0.0)); }
FN D NAME(error_of_product)(D a, D b, D c) { return _mm256_fmsub_pd(a, b, c); }
FN D NAME(add_exact_product)(D c, D a, D b) { return _mm256_fmadd_pd(a, b, c); }
FN D NAME(add_rounded_product)(D c, D a, D b) { return _mm256_fmadd_pd(a, b, c); }
FN int NAME(within)(D a, D limit) { return _mm256_movemask_pd(_mm256_cmp_pd(a, limit, _CMP_LE_OQ)) == 0xf; }
FN D NAME(where_positive)(D a, D c) {
    return _mm256_and_pd(a, _mm256_cmp_pd(c, _mm256_setzero_pd(), _CMP_GT_OQ));
}
FN D NAME(finite_or_zero)(D a) {
    return _mm256_and_pd(a, _mm256_cmp_pd(_mm256_sub_pd(a, a), _mm256_setzero_pd(), _CMP_EQ_OQ));
}
FN D NAME(odd)(D a, D e) {
    __m256i bits = _mm256_castpd_si256(a), one = _mm256_set1_epi64x(1), none = _mm256_setzero_si256();
    __m256i inexact = _mm256_castpd_si256(_mm256_cmp_pd(e, _mm256_setzero_pd(), _CMP_NEQ_UQ));
    __m256i moved = _mm256_and_si256(inexact, _mm256_cmpeq_epi64(_mm256_and_si256(bits, one), none));
    __m256i apart = _mm256_cmpgt_epi64(none, _mm256_xor_si256(bits, _mm256_castpd_si256(e)));
    return _mm256_castsi256_pd(_mm256_add_epi64(bits, _mm256_and_si256(moved, _mm256_or_si256(apart, one))));
}
FN int NAME(undecided)(D a, D e, D error) {
    __m256i low = _mm256_and_si256(_mm256_castpd_si256(a), _mm256_set1_epi64x((1 << 29) - 1));
    D tie = _mm256_castsi256_pd(_mm256_cmpeq_epi64(low, _mm256_set1_epi64x(1 << 28)));
    D least = _mm256_max_pd(_mm256_mul_pd(error, _mm256_set1_pd(0x1p55)), _mm256_set1_pd(0x1p-126));
    D small = _mm256_cmp_pd(NAME(size)(a), least, _CMP_LT_OQ);
    tie = _mm256_and_pd(tie, _mm256_cmp_pd(NAME(size)(e), error, _CMP_LE_OQ));
    return _mm256_movemask_pd(_mm256_or_pd(tie, small)) != 0;
}
FN D NAME(odd_float)(D a) {
    __m256i bits = _mm256_castpd_si256(a), low = _mm256_set1_epi64x((1 << 29) - 1);
    __m256i whole = _mm256_cmpeq_epi64(_mm256_and_si256(bits, low), _mm256_setzero_si256());
    __m256i sticky = _mm256_andnot_si256(whole, _mm256_set1_epi64x(1 << 29));
    return _mm256_castsi256_pd(_mm256_or_si256(_mm256_andnot_si256(low, bits), sticky));
}
FN D NAME(from_fp32)(const float *p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
FN D NAME(from_bf16)(const uint16_t *p) {
    __m128i bits = _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)p)), 16);
    return _mm256_cvtps_pd(_mm_castsi128_ps(bits));
}
FN D NAME(from_fp16)(const uint16_t *p) { return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)p))); }
FN double NAME(sum_of_halves)(D a) {
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
FN D NAME(doubles)(F a) { return _mm256_cvtps_pd(a); }
FN F NAME(f_sub)(F a, F b) { return _mm_sub_ps(a, b); }
FN F NAME(f_from)(const uint16_t *p, int type) {
    __m128i halves = _mm_loadl_epi64((const __m128i *)p);
    if (type == FP16) return _mm_cvtph_ps(halves);
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16));
}
FN F NAME(floats)(D a) { return _mm256_cvtpd_ps(a); }
FN void NAME(put_floats)(float *p, F a) { _mm_storeu_ps(p, a); }
FN int NAME(same_floats)(F a, F b) {
    __m128i differs = _mm_xor_si128(_mm_castps_si128(a), _mm_castps_si128(b));
    return _mm_testz_si128(differs, differs);
}
FN void NAME(put_floats_far)(float *p, F a) { _mm_stream_ps(p, a); }
FN void NAME(copy_far)(char *to, const char *from) {
    __m256i first = _mm256_loadu_si256((const __m256i *)from), second = _mm256_loadu_si256((const __m256i *)from + 1);
    _mm256_stream_si256((__m256i *)to, first);
    _mm256_stream_si256((__m256i *)to + 1, second);
}
FN H NAME(bf16)(F a) {
    __m128i bits = _mm_castps_si128(a), one = _mm_set1_epi32(1);
    bits = _mm_blendv_epi8(bits, _mm_set1_epi32(PLAIN_NAN), _mm_castps_si128(_mm_cmp_ps(a, a, _CMP_UNORD_Q)));
    __m128i up = _mm_add_epi32(_mm_and_si128(_mm_srli_epi32(bits, 16), one), _mm_set1_epi32(0x7fff));
    bits = _mm_srli_epi32(_mm_add_epi32(bits, up), 16);
    return _mm_packus_epi32(bits, _mm_setzero_si128());
}
FN H NAME(fp16)(F a) { return _mm_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FN void NAME(put_halves)(uint16_t *p, H a) { _mm_storel_epi64((__m128i *)p, a); }
FN int NAME(same_halves)(H a, H b) {
    __m128i differs = _mm_xor_si128(a, b);
    return _mm_testz_si128(differs, differs);
}

#define QUICK 8
#define Q __m256
FN Q NAME(q_zero)(void) { return _mm256_setzero_ps(); }
FN void NAME(q_put_floats)(float *p, Q a) { _mm256_storeu_ps(p, a); }
FN Q NAME(q_all)(float x) { return _mm256_set1_ps(x); }
FN Q NAME(q_add)(Q a, Q b) { return _mm256_add_ps(a, b); }
FN Q NAME(q_sub)(Q a, Q b) { return _mm256_sub_ps(a, b); }
FN Q NAME(q_mul)(Q a, Q b) { return _mm256_mul_ps(a, b); }
FN Q NAME(q_size)(Q a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
FN Q NAME(q_minus)(Q a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
FN int NAME(q_within)(Q a, Q limit) { return _mm256_movemask_ps(_mm256_cmp_ps(a, limit, _CMP_LE_OQ)) == 0xff; }
FN Q NAME(q_where_positive)(Q a, Q c) { return _mm256_and_ps(a, _mm256_cmp_ps(c, _mm256_setzero_ps(), _CMP_GT_OQ)); }
FN Q NAME(q_larger)(Q a, Q b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(NAME(q_size)(b))));
}
FN Q NAME(q_smaller)(Q a, Q b) {
    return _mm256_castsi256_ps(_mm256_min_epi32(_mm256_castps_si256(a), _mm256_castps_si256(NAME(q_size)(b))));
}
FN int NAME(q_near)(Q a, Q b, int32_t steps) {
    __m256i apart = _mm256_sub_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b));
    __m256i farther = _mm256_cmpgt_epi32(apart, _mm256_set1_epi32(steps));
    return _mm256_testz_si256(farther, farther);
}
FN Q NAME(q_unless_near)(Q x, Q a, Q b, int32_t steps) {
    __m256i apart = _mm256_sub_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b));
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(apart, _mm256_set1_epi32(steps))));
}
FN Q NAME(q_get)(const float *p) { return _mm256_loadu_ps(p); }
FN D NAME(q_doubles)(Q a, int part) {
    return _mm256_cvtps_pd(part ? _mm256_extractf128_ps(a, 1) : _mm256_castps256_ps128(a));
}
FN Q NAME(q_from)(const uint16_t *p, int type) {
    __m128i halves = _mm_loadu_si128((const __m128i *)p);
    if (type == FP16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
FN __m128i NAME(q_halves)(Q a, int type) {
    if (type == FP16) return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256i bits = _mm256_castps_si256(a), one = _mm256_set1_epi32(1);
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(PLAIN_NAN), is_nan);
    __m256i up = _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(bits, 16), one), _mm256_set1_epi32(0x7fff));
    bits = _mm256_srli_epi32(_mm256_add_epi32(bits, up), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}
FN uint32_t NAME(q_put)(uint16_t *p, Q a, Q b, int type) {
    __m128i halves = NAME(q_halves)(a, type), same = _mm_cmpeq_epi16(halves, NAME(q_halves)(b, type));
    _mm_storeu_si128((__m128i *)p, halves);
    return 0xff & ~(uint32_t)_mm_movemask_epi8(_mm_packs_epi16(same, same));
}

#else
#define WIDTH 1
#define D double
#define F float
#define H uint16_t
FN D NAME(zero)(void) { return 0.0; }
FN D NAME(all)(double x) { return x; }
FN D NAME(get)(const double *p) { return *p; }
FN void NAME(put)(double *p, D x) { *p = x; }
FN D NAME(add)(D a, D b) { return a + b; }
FN D NAME(sub)(D a, D b) { return a - b; }
FN D NAME(mul)(D a, D b) { return a * b; }
FN D NAME(size)(D a) { return fabs(a); }
FN D NAME(minus)(D a) { return -a; }
FN D NAME(error_of_product)(D a, D b, D c) { return fma(a, b, -c); }
FN D NAME(add_exact_product)(D c, D a, D b) { return c + a * b; }
FN D NAME(add_rounded_product)(D c, D a, D b) { return c + a * b; }
FN int NAME(within)(D a, D limit) { return a <= limit; }
FN D NAME(where_positive)(D a, D c) { return c > 0.0 ? a : 0.0; }
FN D NAME(finite_or_zero)(D a) { return a - a == 0.0 ? a : 0.0; }
FN D NAME(odd)(D a, D e) {
    uint64_t bits = bits_of_double(a);
    if (e != 0.0 && !(bits & 1)) bits += signbit(a) == signbit(e) ? 1 : -1;
    return double_of_bits(bits);
}
FN int NAME(undecided)(D a, D e, D error) {
    int tie = (bits_of_double(a) & ((1 << 29) - 1)) == 1 << 28;
    return (tie && fabs(e) <= error) || fabs(a) < fmax(error * 0x1p55, 0x1p-126);
}
FN D NAME(odd_float)(D a) {
    uint64_t bits = bits_of_double(a), low = (1 << 29) - 1;
    return double_of_bits((bits & ~low) | (bits & low ? low + 1 : 0));
}
FN D NAME(from_fp32)(const float *p) { return *p; }
FN D NAME(from_bf16)(const uint16_t *p) { return float_of_bits((uint32_t)*p << 16); }
FN D NAME(from_fp16)(const uint16_t *p) {
    uint32_t magnitude = *p & 0x7fff, sign = (uint32_t)(*p & 0x8000) << 16;
    uint32_t bits = magnitude < 0x400    ? bits_of_float((float)magnitude * 0x1p-24f)
                    : magnitude < 0x7c00 ? (magnitude << 13) + (112u << 23)
                                         : magnitude << 13 | 0x7f800000u;
    return float_of_bits(bits | sign);
}
FN double NAME(sum_of_halves)(D a) { return a; }
FN D NAME(doubles)(F a) { return a; }
FN F NAME(f_sub)(F a, F b) { return a - b; }
FN F NAME(f_from)(const uint16_t *p, int type) {
    return (float)(type == FP16 ? NAME(from_fp16)(p) : NAME(from_bf16)(p));
}
FN F NAME(floats)(D a) { return (float)a; }
FN void NAME(put_floats)(float *p, F a) { *p = a; }
FN int NAME(same_floats)(F a, F b) { return bits_of_float(a) == bits_of_float(b); }
FN void NAME(put_floats_far)(float *p, F a) { *p = a; }
FN void NAME(copy_far)(char *to, const char *from) { memcpy(to, from, 64); }
FN H NAME(bf16)(F a) {
    uint32_t bits = a != a ? PLAIN_NAN : bits_of_float(a);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
FN H NAME(fp16)(F a) {
    uint32_t bits = bits_of_float(a), magnitude = bits & 0x7fffffff, half = 0x7c00;
    if (magnitude > 0x7f800000u)
        half = 0x7e00;
    else if (magnitude < 0x38800000u) /* adding 0.5 rounds a subnormal half into the low bits of the sum */
        half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    else if (magnitude < 0x47800000u)
        half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    return (uint16_t)(half | (bits >> 16 & 0x8000));
}
FN void NAME(put_halves)(uint16_t *p, H a) { *p = a; }
FN int NAME(same_halves)(H a, H b) { return a == b; }

#define QUICK 1
#define Q float
FN Q NAME(q_zero)(void) { return 0.0f; }
FN void NAME(q_put_floats)(float *p, Q a) { *p = a; }
FN Q NAME(q_all)(float x) { return x; }
FN Q NAME(q_add)(Q a, Q b) { return a + b; }
FN Q NAME(q_sub)(Q a, Q b) { return a - b; }
FN Q NAME(q_mul)(Q a, Q b) { return a * b; }
FN Q NAME(q_size)(Q a) { return fabsf(a); }
FN Q NAME(q_minus)(Q a) { return -a; }
FN int NAME(q_within)(Q a, Q limit) { return a <= limit; }
FN Q NAME(q_where_positive)(Q a, Q c) { return c > 0.0f ? a : 0.0f; }
FN Q NAME(q_larger)(Q a, Q b) { return bits_of_float(a) < bits_of_float(fabsf(b)) ? fabsf(b) : a; }
FN Q NAME(q_smaller)(Q a, Q b) { return bits_of_float(a) > bits_of_float(fabsf(b)) ? fabsf(b) : a; }
FN int NAME(q_near)(Q a, Q b, int32_t steps) { return (int32_t)(bits_of_float(a) - bits_of_float(b)) <= steps; }
FN Q NAME(q_unless_near)(Q x, Q a, Q b, int32_t steps) { return NAME(q_near)(a, b, steps) ? 0.0f : x; }
FN Q NAME(q_get)(const float *p) { return *p; }
FN D NAME(q_doubles)(Q a, int part) {
    (void)part;
    return a;
}
FN Q NAME(q_from)(const uint16_t *p, int type) {
    return (float)(type == FP16 ? NAME(from_fp16)(p) : NAME(from_bf16)(p));
}
FN uint32_t NAME(q_put)(uint16_t *p, Q a, Q b, int type) {
    *p = type == FP16 ? NAME(fp16)(a) : NAME(bf16)(a);
    return *p != (type == FP16 ? NAME(fp16)(b) : NAME(bf16)(b));
}
#endif
