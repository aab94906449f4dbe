/* Between two instruction sets. */
#undef ISA
#undef TARGET
#undef NAME
#undef FN
#undef WIDTH
#undef D
#undef F
#undef H
#undef QUICK
#undef Q
