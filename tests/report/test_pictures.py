import base64
import io

import pytest
from PIL import Image
from sample_findings import png

from holdfast.audit.findings import Picture
from holdfast.report.pictures import image, png_size


def encoded(content):
    return base64.b64encode(content).decode()


def test_a_png_is_shown_at_its_size_with_its_text():
    shown = image(Picture(png=png(0), label='a "cat"', note="<b>"))
    assert shown.startswith('<img src="data:image/png;base64,iVBOR')
    assert 'width="32" height="32"' in shown
    assert "&lt;b&gt;" in shown
    assert '"cat"' not in shown


JPEG = io.BytesIO()
Image.new("RGB", (4, 4)).save(JPEG, format="JPEG")
WHOLE = base64.b64decode(png(1))


@pytest.mark.parametrize(
    "data",
    [
        "",
        "not base64!",
        f'{png(0)}" onerror="alert(1)',
        encoded(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        encoded(JPEG.getvalue()),
        encoded(WHOLE[:8]),
        encoded(WHOLE[: len(WHOLE) // 2]),
        encoded(WHOLE[:60] + bytes([WHOLE[60] ^ 255]) + WHOLE[61:]),
        encoded(WHOLE[:16] + b"\x00\x00\xff\xff\x00\x00\xff\xff" + WHOLE[24:]),
    ],
)
def test_what_is_no_sound_png_is_not_shown(data):
    shown = image(Picture(png=data))
    assert "<img" not in shown
    assert "onerror" not in shown
    assert "not a PNG" in shown


def test_size_is_read_from_the_header():
    assert png_size(base64.b64decode(png(0, size=7))) == (7, 7)
