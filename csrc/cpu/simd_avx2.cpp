#include "simd_kernels.h"

#if WCF_HAS_AVX2_BUILD
#define WCF_AVX2 1
#define WCF_AVX512 0
WCF_AVX2_BEGIN
namespace wcf::avx2 {
#include "simd_kernels.inl"
}
WCF_AVX2_END
#endif
