#include "simd_kernels.h"

#if WCF_HAS_AVX2_BUILD
#define WCF_AVX2 1
#define WCF_AVX512 1
WCF_AVX512_BEGIN
namespace wcf::avx512 {
#include "simd_kernels.inl"
}
WCF_AVX512_END
#endif
