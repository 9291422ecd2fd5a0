"""The convolution that brings a student's feature map to the shape of the teacher's (FitNet, AB)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ConvRegressor(nn.Module):
    """A convolution from the student's shape [C, H, W] to the teacher's, with batch norm and, by default, ReLU.

    Raises:
        ValueError: the student's map is smaller in height or width, and not in both by a factor of 2.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], relu: bool = True) -> None:
        super().__init__()
        (s_c, s_h, s_w), (t_c, t_h, t_w) = student, teacher
        self.relu = relu
        self.conv: nn.Module
        if s_h == 2 * t_h and (s_w + 1) // 2 == t_w:
            self.conv = nn.Conv2d(s_c, t_c, kernel_size=3, stride=2, padding=1)
        elif 2 * s_h == t_h and 2 * s_w == t_w:
            self.conv = nn.ConvTranspose2d(s_c, t_c, kernel_size=4, stride=2, padding=1)
        elif s_h >= t_h and s_w >= t_w:
            self.conv = nn.Conv2d(s_c, t_c, kernel_size=(1 + s_h - t_h, 1 + s_w - t_w))
        else:
            raise ValueError(
                f"the student's map {list(student)} cannot be brought to the teacher's {list(teacher)}: it is smaller "
                "in height or width, and not in both by a factor of 2"
            )
        self.bn = nn.BatchNorm2d(t_c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x
