/* Reads the headers of a serialized ProcessingRequest, in one pass over its bytes.

   The specification is read_headers_in_python in fast_decode.py. Tests compare the two on
   any message, valid or damaged. Only the stable ABI of Python 3.11 is used. */

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* Tags of protobuf's wire format; their names are as in fast_decode.py. */
enum {
    METADATA_CONTEXT = 0x42,
    ATTRIBUTES = 0x4A,
    PROTOCOL_CONFIG = 0x5A,
    HEADERS = 0x0A,
    END_OF_STREAM = 0x18,
    HEADER = 0x0A,
    KEY = 0x0A,
    RAW_VALUE = 0x1A,
    REQUEST_BODY_MODE = 0x08,
    RESPONSE_BODY_MODE = 0x10
};

enum { LONGEST_SHIFT = 28 };

typedef struct {
    const uint8_t *bytes;
    Py_ssize_t size;
} Message;

/* Whether a message has this byte at an offset. */
static bool has(const Message *message, Py_ssize_t at, uint8_t byte) {
    return at < message->size && message->bytes[at] == byte;
}

/* Read a length at `*start`; set the start and end of the bytes after it. Return false if
   the length has more than five bytes, or exceeds the message. */
static bool span(const Message *message, Py_ssize_t *start, Py_ssize_t *end) {
    uint64_t length = 0;
    for (int shift = 0; shift <= LONGEST_SHIFT; shift += 7) {
        if (*start >= message->size)
            return false;
        uint8_t byte = message->bytes[(*start)++];
        length |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            if (length > (uint64_t)(message->size - *start))
                return false;
            *end = *start + (Py_ssize_t)length;
            return true;
        }
    }
    return false;
}

/* Decode the value after a key, between two offsets; NULL without an exception if its
   encoding is unusual. */
static PyObject *value_of(const Message *message, Py_ssize_t at, Py_ssize_t end) {
    Py_ssize_t stop = end;
    if (at < end) {
        if (message->bytes[at++] != RAW_VALUE || !span(message, &at, &stop))
            return NULL;
    }
    if (at > end || stop != end)
        return NULL;
    return PyUnicode_DecodeLatin1((const char *)message->bytes + at, end - at, "strict");
}

/* Add the wanted headers between two offsets. Return false if the encoding is unusual, or
   with an exception. */
static bool add_headers(const Message *message, Py_ssize_t at, Py_ssize_t end,
                        PyObject *wanted, PyObject *headers) {
    while (at < end) {
        Py_ssize_t following;
        if (!has(message, at++, HEADER) || !span(message, &at, &following) ||
            following > end || !has(message, at, KEY) || at + 1 >= message->size)
            return false;
        uint8_t key_bytes = message->bytes[at + 1];
        at += 2;
        if (key_bytes > following - at) { /* a long key, which is never wanted */
            if (key_bytes < 0x80)
                return false;
            at = following;
            continue;
        }
        PyObject *key = PyBytes_FromStringAndSize((const char *)message->bytes + at,
                                                  key_bytes);
        if (key == NULL)
            return false;
        PyObject *name = PyDict_GetItemWithError(wanted, key);
        Py_DECREF(key);
        if (name == NULL && PyErr_Occurred())
            return false;
        int known = name == NULL ? 1 : PyDict_Contains(headers, name);
        if (known < 0 || (name != NULL && key_bytes >= 0x80))
            return false;
        if (!known) {
            PyObject *value = value_of(message, at + key_bytes, following);
            if (value == NULL)
                return false;
            int failed = PyDict_SetItem(headers, name, value);
            Py_DECREF(value);
            if (failed)
                return false;
        }
        at = following;
    }
    return true;
}

/* Read the body modes after the headers; -1 if the message has no configuration. Return
   false if the encoding is unusual. */
static bool read_modes(const Message *message, Py_ssize_t at, int modes[2]) {
    Py_ssize_t end;
    while (has(message, at, METADATA_CONTEXT) || has(message, at, ATTRIBUTES)) {
        at++;
        if (!span(message, &at, &end))
            return false;
        at = end;
    }
    modes[0] = modes[1] = -1;
    if (at == message->size)
        return true;
    if (!has(message, at++, PROTOCOL_CONFIG) || !span(message, &at, &end) ||
        end != message->size)
        return false;
    modes[0] = modes[1] = 0; /* proto3 does not serialize zeros */
    if (at + 1 < end && message->bytes[at] == REQUEST_BODY_MODE) {
        modes[0] = message->bytes[at + 1];
        at += 2;
    }
    if (at + 1 < end && message->bytes[at] == RESPONSE_BODY_MODE) {
        modes[1] = message->bytes[at + 1];
        at += 2;
    }
    return at == end && modes[0] < 0x80 && modes[1] < 0x80;
}

/* read_headers(data, wanted): read a message in one of the headers phases; None if its
   encoding is unusual. */
static PyObject *read_headers(PyObject *module, PyObject *args) {
    PyObject *data, *wanted, *headers, *found = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "SO!", &data, &PyDict_Type, &wanted))
        return NULL;
    Message message = {(const uint8_t *)PyBytes_AsString(data), PyBytes_Size(data)};
    headers = PyDict_New();
    if (headers == NULL)
        return NULL;
    Py_ssize_t at = 1, end, start;
    int ends = 0, modes[2];
    bool usual = message.size > 0 && span(&message, &at, &end);
    if (usual && at < end && message.bytes[at] == HEADERS) {
        start = at + 1;
        usual = span(&message, &start, &at) && at <= end &&
                add_headers(&message, start, at, wanted, headers);
    }
    if (usual && at < end) {
        usual = at + 2 == end && message.bytes[at] == END_OF_STREAM &&
                message.bytes[at + 1] == 1;
        ends = 1;
    }
    if (usual && read_modes(&message, end, modes))
        found = Py_BuildValue("OOii", headers, ends ? Py_True : Py_False, modes[0],
                              modes[1]);
    else if (!PyErr_Occurred()) {
        found = Py_None;
        Py_IncRef(found);
    }
    Py_DECREF(headers);
    return found;
}

static PyMethodDef methods[] = {
    {"read_headers", read_headers, METH_VARARGS,
     "read_headers(data, wanted): headers, end_of_stream and body modes, or None."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_fast_decode", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

/* Increase it with every change of a function's arguments or result. */
enum { INTERFACE = 1 };

PyMODINIT_FUNC PyInit__fast_decode(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
