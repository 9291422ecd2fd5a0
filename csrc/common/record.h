// Records: the arguments of a native op, one plain struct per op with named fields, shared by CPU and CUDA.
//
// A record is written as one list, a macro of four parameters that it applies to its fields in turn:
//   NEEDED(type, name)    Python must give it
//   OPTIONAL(type, name)  0 or null unless Python gives it
//   EACH(type, name)      one for each direction: type name[2]; Python gives name_0 and may give name_1
//   PART(record, name)    the fields of another record, which Python gives by their own names
// WCF_RECORD(Name, LIST) makes the struct, and `visit_fields`, from which the Python type is made (python_record.h).
// So type, name, whether it may be omitted, and comment of a field are in one place.
#pragma once
#include <cstddef>
#include <cstdint>

namespace wcf {

constexpr int MAX_DIRECTIONS = 2;  // student anchors on the teacher's bank, and the reverse

enum class FieldType { address, int32, int64, uint64, float64 };

template <class T>
constexpr FieldType field_type(T* const*) {
  return FieldType::address;
}
constexpr FieldType field_type(const int32_t*) { return FieldType::int32; }
constexpr FieldType field_type(const int64_t*) { return FieldType::int64; }
constexpr FieldType field_type(const uint64_t*) { return FieldType::uint64; }
constexpr FieldType field_type(const double*) { return FieldType::float64; }

}  // namespace wcf

#define WCF_FIELD(type, name) type name;
#define WCF_FIELD_EACH(type, name) type name[::wcf::MAX_DIRECTIONS];
#define WCF_VISIT(type, name, at, needed) visit(name, ::wcf::field_type(static_cast<type*>(nullptr)), at, needed);
#define WCF_VISIT_NEEDED(type, name) WCF_VISIT(type, #name, start + offsetof(Self, name), true)
#define WCF_VISIT_OPTIONAL(type, name) WCF_VISIT(type, #name, start + offsetof(Self, name), false)
#define WCF_VISIT_EACH(type, name)                                \
  WCF_VISIT(type, #name "_0", start + offsetof(Self, name), true) \
  WCF_VISIT(type, #name "_1", start + offsetof(Self, name) + sizeof(type), false)
#define WCF_VISIT_PART(type, name) visit_fields(static_cast<const type*>(nullptr), start + offsetof(Self, name), visit);

// visit(name, type, offset, needed) is called for each field, those of parts included.
#define WCF_RECORD(Name, LIST)                                                 \
  struct Name {                                                                \
    LIST(WCF_FIELD, WCF_FIELD, WCF_FIELD_EACH, WCF_FIELD)                      \
  };                                                                           \
  template <class Visit>                                                       \
  void visit_fields(const Name*, size_t start, Visit&& visit) {                \
    using Self = Name;                                                         \
    LIST(WCF_VISIT_NEEDED, WCF_VISIT_OPTIONAL, WCF_VISIT_EACH, WCF_VISIT_PART) \
  }

// Codes: WCF_CODES(Source, SOURCES) makes an enum from a list of CODE(SOURCE_SELF, "self"), and `visit_codes`, from
// which Python gets {"self": SOURCE_SELF, ...}.
#define WCF_CODE(code, name) code,
#define WCF_VISIT_CODE(code, name) visit(name, static_cast<int32_t>(code));
#define WCF_CODES(Name, LIST)                    \
  enum Name : int32_t { LIST(WCF_CODE) };        \
  template <class Visit>                         \
  void visit_codes(const Name*, Visit&& visit) { \
    LIST(WCF_VISIT_CODE)                         \
  }

namespace wcf {

// Where a call runs. CPU: `threads`. CUDA: the rest.
#define WCF_PLACE(NEEDED, OPTIONAL, EACH, PART) \
  OPTIONAL(int32_t, threads)                    \
  OPTIONAL(int32_t, device)                     \
  OPTIONAL(void*, stream) /* a cudaStream_t; null: the default one */
WCF_RECORD(Place, WCF_PLACE)

inline int threads_of(const Place& a) { return a.threads < 1 ? 1 : a.threads; }

// The device's status word and its bits. Their codes are defined in wcord_fast/ops/status.py, which other backends use
// too, so Python passes them.
#define WCF_STATUS(NEEDED, OPTIONAL, EACH, PART) \
  OPTIONAL(int32_t*, status)                     \
  OPTIONAL(int32_t, index_bit)                   \
  OPTIONAL(int32_t, anchor_bit)                  \
  OPTIONAL(int32_t, update_row_bit)              \
  OPTIONAL(int32_t, ot_input_bit)                \
  OPTIONAL(int32_t, zero_row_bit)                \
  OPTIONAL(int32_t, marginal_bit)
WCF_RECORD(Status, WCF_STATUS)

// A one-element kernel that writes `value` to `out`.
#define WCF_PROBE(NEEDED, OPTIONAL, EACH, PART) \
  NEEDED(int32_t*, out)                         \
  NEEDED(int32_t, value)                        \
  PART(Place, place)
WCF_RECORD(Probe, WCF_PROBE)

}  // namespace wcf
