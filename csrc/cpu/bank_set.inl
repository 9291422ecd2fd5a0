#include "vec.inl"
#include "bank_terms.inl"
#include "bank_gather.inl"
#include "bank_dense.inl"
