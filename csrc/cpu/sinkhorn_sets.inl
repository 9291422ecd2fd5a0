// The tables of one REAL, one per instruction set. Included twice, by sinkhorn_kernels.cpp only.
namespace wcf {
namespace WCF_REAL_NAMESPACE {

#define WCF_VECTOR_BYTES 16
namespace portable {
#include "sinkhorn_set.inl"
}
#undef WCF_VECTOR_BYTES

#if WCF_HAS_AVX2_BUILD
#define WCF_VECTOR_BYTES 32
WCF_AVX2_BEGIN
namespace avx2 {
#include "sinkhorn_set.inl"
}
WCF_AVX2_END
#undef WCF_VECTOR_BYTES

#define WCF_VECTOR_BYTES 64
WCF_AVX512_BEGIN
namespace avx512 {
#include "sinkhorn_set.inl"
}
WCF_AVX512_END
#undef WCF_VECTOR_BYTES
#endif

}  // namespace WCF_REAL_NAMESPACE
}  // namespace wcf
