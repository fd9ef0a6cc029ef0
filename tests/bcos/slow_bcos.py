"""B-cos arithmetic written out in double precision: loops and dense matrices, no convolution of a library."""

import numpy as np


def conv_matrix(weight, size, stride=1, padding=0):
    """A convolution (zeros around, no bias) as a dense matrix; also the 0/1 matrix of each position's patch."""
    outputs, inputs, kh, kw = weight.shape
    height, width = size
    rows, columns = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    matrix = np.zeros((outputs, rows, columns, inputs, height, width))
    patch = np.zeros((rows, columns, inputs, height, width))
    for r in range(rows):
        for c in range(columns):
            for i in range(kh):
                for j in range(kw):
                    y, x = r * stride + i - padding, c * stride + j - padding
                    if 0 <= y < height and 0 <= x < width:
                        matrix[:, r, c, :, y, x] = weight[:, :, i, j]
                        patch[r, c, :, y, x] = 1
    shape = (outputs, rows, columns)
    n = inputs * height * width
    return matrix.reshape(-1, n), patch.reshape(-1, n), shape


def bcos_conv(x, weight, b=2.0, stride=1, padding=0):
    """x (C, H, W) to the output and its dynamic matrix (flat output by flat input)."""
    unit = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True))
    matrix, patch, shape = conv_matrix(unit, x.shape[1:], stride, padding)
    flat = x.reshape(-1)
    linear = (matrix @ flat).reshape(shape[0], -1)
    norm = np.sqrt(patch @ flat**2 + 1e-6)
    scale = (np.abs(linear) / norm) ** (b - 1)
    dynamic = scale.reshape(-1, 1) * matrix
    return (dynamic @ flat).reshape(shape), dynamic


def scale_channels(shape, factors):
    """A diagonal matrix that multiplies each channel of a flat (C, H, W)."""
    return np.diag(np.repeat(factors, shape[1] * shape[2]))


class SlowResNet:
    """Forward pass and dynamic matrix of a small B-cos ResNet of basic blocks, from its state dict."""

    def __init__(self, state, b=2.0):
        self.state = {k: v.double().numpy() for k, v in state.items()}
        self.b = b

    def __call__(self, encoded):
        """encoded (6, H, W); gives logits without bias, and the rows of W(x), (classes, 6 H W)."""
        self.matrix = np.eye(encoded.size)
        x = self.conv_norm(encoded, "conv1", "bn1", padding=1)
        for name in sorted({k.rsplit(".conv1", 1)[0] for k in self.state if ".conv1.linear" in k}):
            x = self.block(x, name)
        x = self.conv(x, "fc", 1, 0)
        classes = x.shape[0]
        average = np.kron(np.eye(classes), np.full((1, x.shape[1] * x.shape[2]), 1 / (x.shape[1] * x.shape[2])))
        return average @ x.reshape(-1), average @ self.matrix

    def conv(self, x, name, stride, padding):
        out, dynamic = bcos_conv(x, self.state[f"{name}.linear.weight"], self.b, stride, padding)
        self.matrix = dynamic @ self.matrix
        return out

    def conv_norm(self, x, conv, norm, stride=1, padding=0):
        x = self.conv(x, conv, stride, padding)
        factor = self.state[f"{norm}.weight"] / np.sqrt(self.state[f"{norm}.running_var"] + 1e-5)
        self.matrix = scale_channels(x.shape, factor) @ self.matrix
        return x * factor[:, None, None]

    def block(self, x, name):
        before = self.matrix
        shortcut, into = x, before
        stride = 1
        if f"{name}.downsample.0.linear.weight" in self.state:
            stride = 1 if name.startswith("layer1") else 2
            shortcut = self.conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            into, self.matrix = self.matrix, before
        y = self.conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride, 1)
        y = self.conv_norm(y, f"{name}.conv2", f"{name}.bn2", 1, 1)
        self.matrix = self.matrix + into
        return y + shortcut
