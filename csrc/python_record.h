// A record of common/record.h as a Python type: keywords in, a struct out, and attributes to change one field later.
//
//   r = native.BankUpdate(bank=..., index=..., ...)   TypeError for an unknown or a missing name, or a wrong kind of
//   value r.index = tensor.data_ptr()                       OverflowError where it does not fit the field
//   native.cpu_bank_update(r)
//
// Written against CPython's own interface, because pybind11's properties and keywords take several times as long, and
// a record is filled in every training step.
#pragma once
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <vector>

#include "common/record.h"

namespace wcf {

// One field, for the Python type.
struct PythonField {
  PyObject* name;  // interned, so that keywords are mostly recognised by their address
  const char* text;
  FieldType type;
  size_t offset;
  bool needed;
};

// The data of one record type. `fields` is filled once and never moves afterwards, because the type's getters and
// setters point into it.
struct PythonRecordType {
  PyTypeObject* type = nullptr;
  const char* name = nullptr;
  size_t bytes = 0;
  std::vector<PythonField> fields;
  std::vector<PyGetSetDef> properties;
};

// Makes the type and adds it to the module. `bytes`: the size of the struct.
void make_python_record(pybind11::module_& m, const char* name, size_t bytes, PythonRecordType* type);

// The struct inside an instance.
inline void* record_data(PyObject* object) { return reinterpret_cast<char*>(object) + sizeof(PyObject); }

template <class Record>
PythonRecordType& python_record() {
  static PythonRecordType type;
  return type;
}

template <class Record>
void def_record(pybind11::module_& m, const char* name) {
  static_assert(alignof(Record) <= alignof(PyObject), "the struct follows the object's head");
  PythonRecordType& type = python_record<Record>();
  visit_fields(static_cast<const Record*>(nullptr), 0, [&](const char* text, FieldType kind, size_t at, bool needed) {
    type.fields.push_back({PyUnicode_InternFromString(text), text, kind, at, needed});
  });
  make_python_record(m, name, sizeof(Record), &type);
}

// The struct of a Python object; TypeError unless it is such a record.
template <class Record>
Record& record_of(const pybind11::handle& object) {
  const PythonRecordType& type = python_record<Record>();
  if (Py_TYPE(object.ptr()) != type.type) {
    throw pybind11::type_error(std::string("expected a ") + type.name + ", got " + Py_TYPE(object.ptr())->tp_name);
  }
  return *static_cast<Record*>(record_data(object.ptr()));
}

// m.name = {name: code, ...} of the enum.
template <class Enum>
void def_codes(pybind11::module_& m, const char* name) {
  pybind11::dict codes;
  visit_codes(static_cast<const Enum*>(nullptr), [&](const char* text, int32_t code) { codes[text] = code; });
  m.attr(name) = codes;
}

}  // namespace wcf
