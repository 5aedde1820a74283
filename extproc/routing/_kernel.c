/* Counts pairs of byte classes in one pass over a text, without a copy of it.

   The specification is extproc.routing.features._count_all with NumPy: the table of
   classes and the room for classes come from Python, so that this file knows neither.
   Tests compare both on any bytes. Only the stable ABI of Python 3.11 is used. */

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { MAX_CLASSES = 64 };

/* count_pairs(text, table, classes, first, counts): add to counts[classes * a + b] how
   often class b follows class a in the text, which is taken to follow class `first`. */
static PyObject *count_pairs(PyObject *module, PyObject *args) {
    Py_buffer text, table, counts;
    Py_ssize_t classes, first;
    /* Two tables in turn: an addition need not wait for the one before it, which is
       often to the same pair. */
    uint32_t even[MAX_CLASSES * MAX_CLASSES], odd[MAX_CLASSES * MAX_CLASSES];
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*nnw*", &text, &table, &classes, &first, &counts))
        return NULL;
    Py_ssize_t pairs = classes * classes;
    const char *wrong = NULL;
    if (classes < 1 || classes > MAX_CLASSES || first < 0 || first >= classes)
        wrong = "classes: out of range";
    else if (table.len != 256)
        wrong = "table: expected 256 bytes";
    else if (counts.len != pairs * (Py_ssize_t)sizeof(int64_t))
        wrong = "counts: expected a 64-bit integer for each pair";
    else if ((uint64_t)text.len > UINT32_MAX)
        wrong = "text: too long";
    else {
        const uint8_t *class_of = table.buf;
        for (int byte = 0; byte < 256; byte++)
            if (class_of[byte] >= classes)
                wrong = "table: a class out of range";
    }
    if (wrong == NULL) {
        const uint8_t *bytes = text.buf, *class_of = table.buf;
        int64_t *out = counts.buf;
        memset(even, 0, sizeof(uint32_t) * (size_t)pairs);
        memset(odd, 0, sizeof(uint32_t) * (size_t)pairs);
        size_t before = (size_t)first, room = (size_t)classes;
        Py_ssize_t at = 0;
        for (; at + 1 < text.len; at += 2) {
            size_t one = class_of[bytes[at]], two = class_of[bytes[at + 1]];
            even[before * room + one]++;
            odd[one * room + two]++;
            before = two;
        }
        if (at < text.len)
            even[before * room + class_of[bytes[at]]]++;
        for (Py_ssize_t pair = 0; pair < pairs; pair++)
            out[pair] += (int64_t)even[pair] + odd[pair];
    }
    PyBuffer_Release(&text);
    PyBuffer_Release(&table);
    PyBuffer_Release(&counts);
    if (wrong != NULL) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"count_pairs", count_pairs, METH_VARARGS,
     "count_pairs(text, table, classes, first, counts): add the pairs of a text."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&definition); }
