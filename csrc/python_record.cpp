#include "python_record.h"

namespace wcf {
namespace {

PythonRecordType* shared_of(PyObject* type_object);

// Writes `value` into the field; -1 with a Python error if it is of the wrong kind or does not fit.
int set_field(PyObject* self, PyObject* value, const PythonField& field) {
  char* const at = static_cast<char*>(record_data(self)) + field.offset;
  if (!value) {
    PyErr_Format(PyExc_TypeError, "%s.%s cannot be deleted", Py_TYPE(self)->tp_name, field.text);
    return -1;
  }
  if (field.type == FieldType::float64) {
    const double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) {
      PyErr_Format(PyExc_TypeError, "%s.%s: expected a number, got %R", Py_TYPE(self)->tp_name, field.text, value);
      return -1;
    }
    std::memcpy(at, &number, sizeof number);
    return 0;
  }
  if (!PyLong_Check(value)) {
    PyErr_Format(PyExc_TypeError, "%s.%s: expected an int, got %R", Py_TYPE(self)->tp_name, field.text, value);
    return -1;
  }
  bool fits = true;
  if (field.type == FieldType::address || field.type == FieldType::uint64) {
    const unsigned long long number = PyLong_AsUnsignedLongLong(value);
    fits = !(number == static_cast<unsigned long long>(-1) && PyErr_Occurred());
    const uint64_t word = number;
    std::memcpy(at, &word, sizeof word);
  } else {
    const long long number = PyLong_AsLongLong(value);
    fits = !(number == -1 && PyErr_Occurred());
    if (field.type == FieldType::int64) {
      const int64_t word = number;
      std::memcpy(at, &word, sizeof word);
    } else {
      const int32_t word = static_cast<int32_t>(number);
      fits = fits && word == number;
      std::memcpy(at, &word, sizeof word);
    }
  }
  if (fits) return 0;
  PyErr_Format(PyExc_OverflowError, "%s.%s: %R does not fit", Py_TYPE(self)->tp_name, field.text, value);
  return -1;
}

PyObject* get_field(PyObject* self, void* closure) {
  const PythonField& field = *static_cast<const PythonField*>(closure);
  const char* const at = static_cast<const char*>(record_data(self)) + field.offset;
  if (field.type == FieldType::float64) {
    double number;
    std::memcpy(&number, at, sizeof number);
    return PyFloat_FromDouble(number);
  }
  if (field.type == FieldType::int32) {
    int32_t number;
    std::memcpy(&number, at, sizeof number);
    return PyLong_FromLong(number);
  }
  int64_t number;
  std::memcpy(&number, at, sizeof number);
  return field.type == FieldType::int64 ? PyLong_FromLongLong(number)
                                        : PyLong_FromUnsignedLongLong(static_cast<uint64_t>(number));
}

int set_attribute(PyObject* self, PyObject* value, void* closure) {
  return set_field(self, value, *static_cast<const PythonField*>(closure));
}

PyObject* get_address(PyObject* self, void*) { return PyLong_FromVoidPtr(record_data(self)); }

// The number of the field named `key`, looked for from `first` on, as callers keep the order of the list; or -1.
int find_field(const PythonRecordType& shared, PyObject* key, size_t first) {
  const size_t count = shared.fields.size();
  for (size_t i = 0; i < count; ++i) {
    const size_t at = first + i < count ? first + i : first + i - count;
    if (shared.fields[at].name == key) return static_cast<int>(at);
  }
  for (size_t i = 0; i < count; ++i) {  // a name that was put together at run time is another object
    if (PyUnicode_Compare(shared.fields[i].name, key) == 0) return static_cast<int>(i);
  }
  return -1;
}

PyObject* missing(const PythonRecordType& shared, const std::vector<bool>& given) {
  std::string names;
  for (size_t i = 0; i < shared.fields.size(); ++i) {
    if (shared.fields[i].needed && !given[i]) names += (names.empty() ? "" : ", ") + std::string(shared.fields[i].text);
  }
  PyErr_Format(PyExc_TypeError, "%s: missing %s", shared.name, names.c_str());
  return nullptr;
}

// type(name=value, ...)
PyObject* construct(PyObject* type_object, PyObject* const* args, size_t flagged_count, PyObject* names) {
  const PythonRecordType& shared = *shared_of(type_object);
  if (PyVectorcall_NARGS(flagged_count) != 0) {
    PyErr_Format(PyExc_TypeError, "%s: fields are given by name", shared.name);
    return nullptr;
  }
  PyObject* const self = shared.type->tp_alloc(shared.type, 0);  // all zero
  if (!self) return nullptr;
  std::vector<bool> given(shared.fields.size());
  const Py_ssize_t count = names ? PyTuple_GET_SIZE(names) : 0;
  size_t next = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const key = PyTuple_GET_ITEM(names, i);
    const int at = find_field(shared, key, next);
    if (at < 0) PyErr_Format(PyExc_TypeError, "%s: there is no field %R", shared.name, key);
    if (at < 0 || set_field(self, args[i], shared.fields[static_cast<size_t>(at)]) != 0) {
      Py_DECREF(self);
      return nullptr;
    }
    given[static_cast<size_t>(at)] = true;
    next = static_cast<size_t>(at) + 1;
  }
  for (size_t i = 0; i < given.size(); ++i) {
    if (!shared.fields[i].needed || given[i]) continue;
    Py_DECREF(self);
    return missing(shared, given);
  }
  return self;
}

PyObject* construct_slowly(PyTypeObject*, PyObject*, PyObject*) {
  PyErr_SetString(PyExc_TypeError, "a record is made by calling its type");
  return nullptr;
}

void destroy(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

std::vector<PythonRecordType*>& all_types() {
  static std::vector<PythonRecordType*> types;
  return types;
}

PythonRecordType* shared_of(PyObject* type_object) {
  for (PythonRecordType* shared : all_types()) {
    if (reinterpret_cast<PyObject*>(shared->type) == type_object) return shared;
  }
  return nullptr;  // never: the types cannot be subclassed
}

}  // namespace

void make_python_record(pybind11::module_& m, const char* name, size_t bytes, PythonRecordType* shared) {
  shared->name = name;
  shared->bytes = bytes;
  for (PythonField& field : shared->fields) {
    shared->properties.push_back({field.text, get_field, set_attribute, nullptr, &field});
  }
  shared->properties.push_back({"address", get_address, nullptr, "of the struct, while this object lives", nullptr});
  shared->properties.push_back({nullptr, nullptr, nullptr, nullptr, nullptr});
  PyType_Slot slots[] = {{Py_tp_getset, shared->properties.data()},
                         {Py_tp_new, reinterpret_cast<void*>(construct_slowly)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                         {0, nullptr}};
  static std::vector<std::string> full_names;  // the type keeps the address
  full_names.reserve(64);
  full_names.push_back("wcord_fast._native." + std::string(name));
  PyType_Spec spec{full_names.back().c_str(), static_cast<int>(sizeof(PyObject) + bytes), 0, Py_TPFLAGS_DEFAULT, slots};
  PyObject* const type = PyType_FromSpec(&spec);
  if (!type) throw pybind11::error_already_set();
  shared->type = reinterpret_cast<PyTypeObject*>(type);
  shared->type->tp_vectorcall = construct;
  all_types().push_back(shared);
  m.attr(name) = pybind11::handle(type);
}

}  // namespace wcf
