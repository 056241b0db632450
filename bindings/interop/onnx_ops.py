"""An op set that writes ONNX nodes: the operations as ``saccade`` has them, of values that are yet to come.

NumPy arrays are constants: what is made of constants alone is computed by ``saccade.reference`` and written as one. A
value's first axis is the batch, of unknown size, written as ``BATCH`` in its shape.
"""

import numpy as np
from onnx import helper, numpy_helper

from saccade import reference

BATCH = -1  # which is how ONNX writes a size that follows from the others
OPSET, IR = 20, 10


class Value:
    """What a node will give: a shape, a dtype, and the arithmetic that stages do."""

    __array_ufunc__ = None  # so that NumPy arrays leave sums with values to them

    def __init__(self, graph, name, shape, dtype):
        self.graph, self.name, self.shape, self.dtype = graph, name, tuple(shape), np.dtype(dtype)

    @property
    def ndim(self):
        return len(self.shape)

    def __add__(self, other):
        return self.graph.elementwise("Add", self, other)

    def __sub__(self, other):
        return self.graph.elementwise("Sub", self, other)

    def __mul__(self, other):
        return self.graph.elementwise("Mul", self, other)

    __radd__, __rmul__ = __add__, __mul__

    def reshape(self, *shape):
        return self.graph.node("Reshape", [self, np.array(shape, np.int64)], shape)

    def swapaxes(self, a, b):
        order = list(range(self.ndim))
        order[a], order[b] = b, a
        return self.transpose(order)

    def transpose(self, order):
        return self.graph.node("Transpose", [self], [self.shape[i] for i in order], perm=list(order))

    def cast(self, dtype):
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        return self.graph.node("Cast", [self], self.shape, dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def argmax(self, axis):
        return self.graph.node("ArgMax", [self], self.shape[:-1], np.int64, axis=axis, keepdims=0)

    def cumsum(self, axis):
        return self.graph.node("CumSum", [self, np.array(axis, np.int64)], self.shape)

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if all(isinstance(one, Value) for one in index):
            places = [one.reshape(BATCH, 1) for one in index]
            return self.graph.node("GatherND", [self, self.graph.concatenate(places, 1)], (BATCH, *self.shape[2:]))
        x = self
        for axis, one in reversed(list(enumerate(index))):
            if isinstance(one, slice):
                x = x._sliced(axis, one)
            else:
                shape = x.shape[:axis] + x.shape[axis + 1 :]
                x = x.graph.node("Gather", [x, np.array(one, np.int64)], shape, axis=axis)
        return x

    def _sliced(self, axis, part):
        if part == slice(None):
            return self
        size = len(range(*part.indices(self.shape[axis])))
        start, stop, _ = part.indices(self.shape[axis])
        bounds = [np.array([x], np.int64) for x in (start, stop, axis)]
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return self.graph.node("Slice", [self, *bounds], shape)


class Graph:
    """Nodes and constants; its methods are the op set."""

    def __init__(self, parameters):
        self.parameters = parameters
        self._names = {id(x): name for name, x in parameters.items()}
        self._constants, self._transposes, self._nodes, self._inputs, self._outputs = {}, {}, [], [], []
        self._count = 0

    def input(self, name, shape, dtype):
        """A value that the file's user gives."""
        value = Value(self, name, shape, dtype)
        self._inputs.append(_described(value))
        self._batch = self.node("Shape", [value], (1,), np.int64, start=0, end=1)
        return value

    def output(self, value, name):
        """What the file's user gets."""
        named = Value(self, name, value.shape, value.dtype)
        self._nodes.append(helper.make_node("Identity", [value.name], [name]))
        self._outputs.append(_described(named))

    def model(self, name):
        """The file's contents."""
        constants = [numpy_helper.from_array(np.array(x, order="C"), key) for key, x in self._constants.values()]
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="saccade")

    def node(self, kind, inputs, shape, dtype=None, **attributes):
        """The value of a new node; its dtype is that of the first input if not given."""
        self._count += 1
        dtype = inputs[0].dtype if dtype is None else dtype
        value = Value(self, f"{kind}_{self._count}", shape, dtype)
        names = [x.name if isinstance(x, Value) else self._constant(x) for x in inputs]
        self._nodes.append(helper.make_node(kind, names, [value.name], name=value.name, **attributes))
        return value

    def _constant(self, x):
        if id(x) not in self._constants:  # which holds on to x, so that no other array gets its id
            self._constants[id(x)] = self._names.get(id(x), f"constant_{len(self._constants)}"), x
        return self._constants[id(x)][0]

    def elementwise(self, kind, x, other):
        """x and other, broadcast by NumPy's rules."""
        if isinstance(other, (int, float)):
            other = np.array(other, x.dtype)
        shape = _broadcast(x.shape, other.shape)
        return self.node(kind, [x, other], shape)

    # what models need besides the operations

    def concatenate(self, arrays, axis):
        size = sum(x.shape[axis] for x in arrays)
        first = next(x for x in arrays if isinstance(x, Value))
        shape = (*first.shape[:axis], size, *first.shape[axis + 1 :])
        return self.node("Concat", list(arrays), shape, first.dtype, axis=axis)

    def broadcast_to(self, x, shape):
        sizes = [self._batch if n == BATCH else np.array([n], np.int64) for n in shape]
        return self.node("Expand", [x, self.node("Concat", sizes, (len(shape),), np.int64, axis=0)], shape)

    def take(self, x, indices, axis):
        return x[(slice(None),) * axis + (indices,)]

    def tanh(self, x):
        return self.node("Tanh", [x], x.shape)

    def relu(self, x):
        return self.node("Relu", [x], x.shape)

    def mean(self, x, axis):
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        return self.node("ReduceMean", [x, np.array([axis], np.int64)], shape, keepdims=0)

    def identity(self, n, like):
        return reference.identity(n, like)

    # the operations

    def linear(self, x, weight, bias=None):
        if not isinstance(x, Value):
            return reference.linear(x, weight, bias)
        out = self.node("MatMul", [x, self._turned(weight)], (*x.shape[:-1], weight.shape[0]))
        return out if bias is None else out + bias

    def _turned(self, weight):
        if id(weight) not in self._transposes:
            name = self._names.get(id(weight), f"constant_{len(self._constants)}")
            turned = np.ascontiguousarray(weight.T)
            self._names[id(turned)] = f"{name}.T"
            self._transposes[id(weight)] = turned, weight
        return self._transposes[id(weight)][0]

    def embedding(self, tokens, weight):
        return self.node("Gather", [weight, tokens], (*tokens.shape, weight.shape[1]), axis=0)

    def layer_norm(self, x, scale, bias=None, *, eps=1e-5, residual=None):
        total = x if residual is None else x + residual
        inputs = [total, scale] if bias is None else [total, scale, bias]
        out = self.node("LayerNormalization", inputs, total.shape, axis=-1, epsilon=float(eps))
        return out if residual is None else (out, total)

    def rms_norm(self, x, scale, *, eps=1e-5, residual=None):
        total = x if residual is None else x + residual
        shape = (*total.shape[:-1], 1)
        squares = self.node("ReduceMean", [total * total, np.array([-1], np.int64)], shape, keepdims=1)
        out = self.node("Div", [total, self.node("Sqrt", [squares + eps], shape)], total.shape) * scale
        return out if residual is None else (out, total)

    def gelu(self, x, *, kind="erf"):
        if kind == "sigmoid":
            return x * self.node("Sigmoid", [x * 1.702], x.shape)
        return self.node("Gelu", [x], x.shape, approximate="none" if kind == "erf" else kind)

    def mlp(self, x, weight_in, bias_in, weight_out, bias_out, *, kind="erf"):
        return self.linear(self.gelu(self.linear(x, weight_in, bias_in), kind=kind), weight_out, bias_out)

    def l2_normalize(self, x, *, eps=1e-12):
        shape = (*x.shape[:-1], 1)
        length = self.node("ReduceL2", [x, np.array([-1], np.int64)], shape, keepdims=1)
        return self.node("Div", [x, self.node("Max", [length, np.array(eps, x.dtype)], shape)], x.shape)

    def attention(self, query, key, value, *, causal=False, key_lengths=None, scale=None):
        (*rows, t, d), s, e = query.shape, key.shape[2], value.shape[3]
        scores = self.node("MatMul", [query * (d**-0.5 if scale is None else scale), key.swapaxes(2, 3)], (*rows, t, s))
        if causal:
            scores = scores + np.where(np.tri(t, s, s - t, bool), 0, -np.inf).astype(query.dtype)
        if key_lengths is not None:
            lengths = key_lengths.reshape(BATCH, 1, 1, 1)
            there = self.node("Less", [np.arange(s), lengths], (BATCH, 1, 1, s), np.bool_)
            nothing = np.array(-np.inf, query.dtype)
            scores = self.node("Where", [there, scores, nothing], scores.shape, query.dtype)
        weights = self.node("Softmax", [scores], scores.shape, axis=-1)
        return self.node("MatMul", [weights, value], (*rows, t, e))

    def qkv_attention(self, qkv, *, causal=False):
        three = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
        return self.attention(*three, causal=causal).swapaxes(1, 2)

    def patch_embed(self, images, weight, bias=None, *, mean=None, std=None):
        e, _, p, _ = weight.shape
        b, h, w, _ = images.shape
        x = images.cast(weight.dtype)
        if images.dtype == np.uint8:
            x = self.node("Div", [x, np.array(255, weight.dtype)], x.shape)
        if mean is not None:
            x = self.node("Div", [x - np.array(mean, weight.dtype), np.array(std, weight.dtype)], x.shape)
        x = self._channels_first(
            x, (e, h // p, w // p), "Conv", weight, *([] if bias is None else [bias]), strides=[p] * 2
        )
        return x.reshape(b, (h // p) * (w // p), e)

    def conv2d(self, x, weight, bias=None, *, stride=1, padding=0):
        sizes = [(n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[1:3], weight.shape[2:], strict=True)]
        more = [] if bias is None else [bias]
        return self._channels_first(
            x, (weight.shape[0], *sizes), "Conv", weight, *more, strides=[stride] * 2, pads=[padding] * 4
        )

    def average_pool(self, x, *, size):
        b, h, w, c = x.shape
        return self._channels_first(
            x, (c, h // size, w // size), "AveragePool", kernel_shape=[size] * 2, strides=[size] * 2
        )

    def _channels_first(self, x, shape, kind, *more, **attributes):
        """A node that has channels before pixels, of b h w c."""
        out = self.node(kind, [x.transpose((0, 3, 1, 2)), *more], (BATCH, *shape), **attributes)
        return out.transpose((0, 2, 3, 1))

    def batch_norm(self, x, mean, variance, scale, bias, *, eps=1e-5):
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)
        return x * factor.astype(x.dtype) + (bias - mean * factor).astype(x.dtype)


def _broadcast(a, b):
    """The shape of a sum, where one of the two may have the batch."""
    sizes = np.broadcast_shapes(*(tuple(0x7FFFFFFF if n == BATCH else n for n in shape) for shape in (a, b)))
    return tuple(BATCH if n == 0x7FFFFFFF else n for n in sizes)


def _described(value):
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(value.name, kind, ["batch" if n == BATCH else n for n in value.shape])
