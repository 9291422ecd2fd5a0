#include "bank_set.h"

#if WCF_HAS_AVX2_BUILD
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns about its own intrinsics (bug 105593)
#endif
#define WCF_AVX2 1
#define WCF_AVX512 1
WCF_AVX512_BEGIN
namespace wcf::avx512 {
#include "bank_set.inl"
}
WCF_AVX512_END
#endif
