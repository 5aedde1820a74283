/* The most expensive loops of a decision: the pairs of byte classes in a text, counted in
   one pass, and the variances of an estimate, over the terms present in the prompt.

   The specification is extproc.routing.arithmetic with NumPy; the table of classes and
   the terms are arguments from Python. Tests compare the two on any input. Only the
   stable ABI of Python 3.11 is used. */

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { ROW = 64, MAX_TERMS = 512, MAX_FAMILIES = 64 };

/* Counts of pairs: a row for each first class. Two tables are used in turn, so that an
   addition need not wait for the previous one, which is often to the same pair. */
typedef uint16_t Pairs[ROW][ROW];

/* Maximum number of bytes to count before the 16-bit counts could overflow. */
enum { BLOCK_BYTES = UINT16_MAX };

/* Count a text's pairs; return the set of its classes, including `first`. */
static uint64_t count_pairs(const uint8_t *text, Py_ssize_t size,
                            const uint8_t *class_of, size_t first, Pairs even,
                            Pairs odd) {
    size_t before = first;
    uint64_t seen = (uint64_t)1 << first;
    Py_ssize_t at = 0;
    for (; at + 1 < size; at += 2) {
        size_t one = class_of[text[at]], two = class_of[text[at + 1]];
        even[before][one]++;
        odd[one][two]++;
        seen |= (uint64_t)1 << one | (uint64_t)1 << two;
        before = two;
    }
    if (at < size) {
        size_t last = class_of[text[at]];
        even[before][last]++;
        seen |= (uint64_t)1 << last;
    }
    return seen;
}

/* Add a block's pairs to their terms, and its bytes to their classes. */
static void add_block(const uint8_t *text, Py_ssize_t size, const uint8_t *class_of,
                      const uint16_t *places, size_t first, double *terms,
                      Py_ssize_t count, uint64_t *totals) {
    Pairs even, odd;
    memset(even, 0, sizeof(even));
    memset(odd, 0, sizeof(odd));
    uint64_t seen = count_pairs(text, size, class_of, first, even, odd);
    uint8_t present[ROW];
    int classes = 0;
    for (int each = 0; each < ROW; each++)
        if (seen >> each & 1)
            present[classes++] = (uint8_t)each;
    for (int i = 0; i < classes; i++) {
        size_t a = present[i];
        for (int j = 0; j < classes; j++) {
            size_t b = present[j];
            uint32_t pairs = (uint32_t)even[a][b] + odd[a][b];
            uint16_t term = places[ROW * a + b];
            totals[b] += pairs;
            if (pairs && term < count)
                terms[term] += pairs;
        }
    }
}

static PyObject *list_of(const uint64_t *totals, Py_ssize_t size) {
    PyObject *list = PyList_New(size);
    if (list == NULL)
        return NULL;
    for (Py_ssize_t at = 0; at < size; at++) {
        PyObject *total = PyLong_FromUnsignedLongLong(totals[at]);
        if (total == NULL || PyList_SetItem(list, at, total) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

/* Return the fault of a table of classes as an error message, or NULL. */
static const char *fault_of(const Py_buffer *table, Py_ssize_t classes) {
    if (classes < 1 || classes > ROW)
        return "classes: out of range";
    return table->len == 256 ? NULL : "table: expected 256 bytes";
}

/* count_terms(text, table, places, classes, first, terms): add 1 to terms[places[64 * a
   + b]] for each class b that follows a class a in the text, as if the text followed
   class `first`. Return the number of bytes in each class. */
static PyObject *count_terms(PyObject *module, PyObject *args) {
    Py_buffer text, table, places, terms;
    Py_ssize_t classes, first;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*y*nnw*", &text, &table, &places, &classes, &first,
                          &terms))
        return NULL;
    Py_ssize_t size = terms.len / (Py_ssize_t)sizeof(double);
    const char *wrong = fault_of(&table, classes);
    if (wrong == NULL && (first < 0 || first >= classes))
        wrong = "first: not one of the classes";
    if (wrong == NULL && places.len != ROW * ROW * (Py_ssize_t)sizeof(uint16_t))
        wrong = "places: expected a 16-bit number for each pair";
    if (wrong == NULL && terms.len != size * (Py_ssize_t)sizeof(double))
        wrong = "terms: expected 64-bit floats";
    PyObject *found = NULL;
    if (wrong == NULL) {
        const uint8_t *bytes = text.buf;
        uint8_t class_of[256];
        uint64_t totals[ROW] = {0};
        for (int byte = 0; byte < 256; byte++)
            class_of[byte] = ((const uint8_t *)table.buf)[byte] % ROW;
        for (Py_ssize_t at = 0; at < text.len; at += BLOCK_BYTES) {
            Py_ssize_t left = text.len - at;
            add_block(bytes + at, left < BLOCK_BYTES ? left : BLOCK_BYTES, class_of,
                      places.buf, at ? class_of[bytes[at - 1]] : (size_t)first,
                      terms.buf, size, totals);
        }
        found = list_of(totals, classes);
    } else
        PyErr_SetString(PyExc_ValueError, wrong);
    PyBuffer_Release(&text);
    PyBuffer_Release(&table);
    PyBuffer_Release(&places);
    PyBuffer_Release(&terms);
    return found;
}

/* Return the first place from `at` at which two texts differ, or `end`. */
static Py_ssize_t next_difference(const uint8_t *one, const uint8_t *two, Py_ssize_t at,
                                  Py_ssize_t end) {
    uint64_t ours, theirs;
    for (; at + (Py_ssize_t)sizeof(ours) <= end; at += sizeof(ours)) {
        memcpy(&ours, one + at, sizeof(ours));
        memcpy(&theirs, two + at, sizeof(theirs));
        if (ours != theirs)
            break;
    }
    while (at < end && one[at] == two[at])
        at++;
    return at;
}

/* count_repeats(text, table, classes, period, least): count the bytes that repeat the
   byte `period` before them, in stretches of at least `least` bytes, by the class of
   the first byte of each stretch. */
static PyObject *count_repeats(PyObject *module, PyObject *args) {
    Py_buffer text, table;
    Py_ssize_t classes, period, least;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*nnn", &text, &table, &classes, &period, &least))
        return NULL;
    PyObject *found = NULL;
    const char *wrong = fault_of(&table, classes);
    if (wrong == NULL && (period < 1 || least < 1))
        wrong = "period, least: expected at least 1";
    if (wrong == NULL) {
        uint64_t totals[ROW] = {0};
        const uint8_t *bytes = text.buf, *class_of = table.buf;
        Py_ssize_t end = text.len - period;
        for (Py_ssize_t start = 0, stop; start < end; start = stop + 1) {
            stop = next_difference(bytes, bytes + period, start, end);
            if (stop - start >= least)
                totals[class_of[bytes[start]] % ROW] += (uint64_t)(stop - start);
        }
        found = list_of(totals, classes);
    } else
        PyErr_SetString(PyExc_ValueError, wrong);
    PyBuffer_Release(&text);
    PyBuffer_Release(&table);
    return found;
}

/* The elements of a vector that are not 0. */
typedef struct {
    Py_ssize_t count;
    uint16_t places[MAX_TERMS];
    double values[MAX_TERMS];
} Sparse;

/* Find the elements of a vector that are not 0; return its fault as an error message, or
   NULL. */
static const char *read_vector(const Py_buffer *vector, Sparse *found) {
    const double *x = vector->buf;
    Py_ssize_t size = vector->len / (Py_ssize_t)sizeof(double);
    if (vector->len != size * (Py_ssize_t)sizeof(double) || size > MAX_TERMS)
        return "x: expected at most 512 64-bit floats";
    found->count = 0;
    for (Py_ssize_t at = 0; at < size; at++)
        if (x[at] != 0.0) {
            found->places[found->count] = (uint16_t)at;
            found->values[found->count++] = x[at];
        }
    return NULL;
}

/* quadratic_form(matrix, x): x' M x for a symmetric matrix M. A prompt has about a third
   of the terms: only their rows and columns of the lower triangle are read. */
static PyObject *quadratic_form(PyObject *module, PyObject *args) {
    Py_buffer matrix, vector;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*", &matrix, &vector))
        return NULL;
    Py_ssize_t size = vector.len / (Py_ssize_t)sizeof(double);
    Sparse x;
    const char *wrong = read_vector(&vector, &x);
    double form = 0.0;
    if (wrong == NULL && matrix.len != size * vector.len)
        wrong = "matrix: expected a row and column for each element of x";
    if (wrong == NULL)
        for (Py_ssize_t i = 0; i < x.count; i++) {
            const double *row = (const double *)matrix.buf + size * x.places[i];
            double even = 0.0, odd = 0.0;
            Py_ssize_t j = 0;
            for (; j + 1 < i; j += 2) {
                even += row[x.places[j]] * x.values[j];
                odd += row[x.places[j + 1]] * x.values[j + 1];
            }
            if (j < i)
                even += row[x.places[j]] * x.values[j];
            form +=
                x.values[i] * (2.0 * (even + odd) + row[x.places[i]] * x.values[i]);
        }
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&vector);
    if (wrong != NULL) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    return PyFloat_FromDouble(form);
}

/* family_variance(coefficients, variances, x, most): the variance of x . w around and
   between the rows of coefficients, at most `most`. */
static PyObject *family_variance(PyObject *module, PyObject *args) {
    Py_buffer coefficients, variances, vector;
    double most;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*y*d", &coefficients, &variances, &vector, &most))
        return NULL;
    Py_ssize_t size = vector.len / (Py_ssize_t)sizeof(double);
    Py_ssize_t rows = vector.len ? coefficients.len / vector.len : 0;
    Sparse x;
    const char *wrong = read_vector(&vector, &x);
    if (wrong == NULL && variances.len != vector.len)
        wrong = "variances: expected one for each element of x";
    if (wrong == NULL && (rows < 2 || rows > MAX_FAMILIES ||
                          coefficients.len != rows * vector.len))
        wrong = "coefficients: expected 2 to 64 rows of the size of x";
    double within = 0.0, between = 0.0;
    if (wrong == NULL) {
        const double *variance = variances.buf;
        for (Py_ssize_t i = 0; i < x.count; i++)
            within += variance[x.places[i]] * x.values[i] * x.values[i];
    }
    if (wrong == NULL && within < most) {
        double tokens[MAX_FAMILIES], sum = 0.0;
        for (Py_ssize_t row = 0; row < rows; row++) {
            const double *of_row = (const double *)coefficients.buf + size * row;
            double total = 0.0;
            for (Py_ssize_t i = 0; i < x.count; i++)
                total += of_row[x.places[i]] * x.values[i];
            tokens[row] = total;
            sum += total;
        }
        for (Py_ssize_t row = 0; row < rows; row++) {
            double apart = tokens[row] - sum / (double)rows;
            between += apart * apart / (double)(rows - 1);
        }
    }
    PyBuffer_Release(&coefficients);
    PyBuffer_Release(&variances);
    PyBuffer_Release(&vector);
    if (wrong != NULL) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    return PyFloat_FromDouble(within + between < most ? within + between : most);
}

static PyMethodDef methods[] = {
    {"count_terms", count_terms, METH_VARARGS,
     "count_terms(text, table, places, classes, first, terms): pairs by term."},
    {"count_repeats", count_repeats, METH_VARARGS,
     "count_repeats(text, table, classes, period, least): repeated bytes by class."},
    {"quadratic_form", quadratic_form, METH_VARARGS,
     "quadratic_form(matrix, x): x' M x for a symmetric matrix M."},
    {"family_variance", family_variance, METH_VARARGS,
     "family_variance(coefficients, variances, x, most): variance of x . w."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

/* Increase it with every change of a function's arguments or result. */
enum { INTERFACE = 1 };

PyMODINIT_FUNC PyInit__kernel(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
