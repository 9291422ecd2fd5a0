#include "simd_kernels.h"

#define WCF_AVX2 0
#define WCF_AVX512 0
namespace wcf::portable {
#include "simd_kernels.inl"
}
