"""Photographs that would take all memory, or never end."""

import gc
import io
import os
import socket
import tarfile
import threading
import time
import zipfile

import cv2
import fsspec
import fsspec.implementations.http
import numpy as np
import pytest

from posefix_jax.data import image_sources, limits
from posefix_jax.data.image_sources import Images, Stored, file_system_of, open_binary
from posefix_jax.data.images import UnreadableImage, read_image
from posefix_jax.data.limits import LARGEST, MOST_PIXELS, Budget, pixels_of
from posefix_jax.types import PosefixError


@pytest.fixture
def odd(tmp_path):
    """A folder with a device, a pipe, a file of 200 GB that has no content, and a photograph."""
    (tmp_path / "1.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "2.jpg")
    with open(tmp_path / "3.jpg", "wb") as file:
        file.truncate(200 << 30)
    cv2.imwrite(str(tmp_path / "4.png"), np.full((5, 7, 3), 9, np.uint8))
    return tmp_path


@pytest.mark.parametrize("name, reason", [("1.jpg", "not a regular file"), ("2.jpg", "not a regular file")])
def test_devices_and_pipes_are_not_read(name, reason, odd):
    for read in (Images(odd).read, lambda path: read_image(odd / path)):
        with pytest.raises(UnreadableImage, match=reason):
            read(name)


def test_a_file_without_end_is_not_read(odd):
    for read in (Images(odd).read, lambda path: read_image(odd / path)):
        with pytest.raises(UnreadableImage, match=f"{200 << 30} bytes; a photograph may have {LARGEST}"):
            read("3.jpg")
    assert Images(odd).read("4.png").shape == (5, 7, 3)


@pytest.mark.parametrize("size", [-512, -1536, -(1 << 40)])
def test_a_tar_with_a_negative_size_ends(size, tmp_path):
    """CVE-2025-8194: the standard library of Python 3.11.7 reads such a tar for ever."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("1.jpg", "2.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(700)))
    raw = bytearray(data.getvalue())
    header = raw[1536:2048]
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    raw[1536:2048] = header
    path = tmp_path / "i.tar"
    path.write_bytes(raw)
    with pytest.raises(PosefixError, match="i.tar: not an archive that can be read .a member has a negative size"):
        Images(path)


def test_a_zips_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        with packed.open("1.jpg", "w", force_zip64=True) as member:
            for _ in range((LARGEST >> 20) + 1):
                member.write(bytes(1 << 20))
    with pytest.raises(UnreadableImage, match="a photograph may have"):
        Images(tmp_path / "i.zip").read("1.jpg")


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("size", [(3, 1021), (257, 64)])
def test_headers_say_how_many_pixels(kind, size):
    draw = np.random.default_rng(0)
    done, data = cv2.imencode(kind, draw.integers(0, 255, (*size, 3), dtype=np.uint8))
    assert done and pixels_of(data.tobytes()) == size[0] * size[1]
    assert pixels_of(data.tobytes()[:11]) == MOST_PIXELS


def test_progressive_and_annotated_jpegs_too():
    image = np.zeros((33, 55, 3), np.uint8)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    comment = b"\xff\xfe" + (60002).to_bytes(2, "big") + b"\xff\xc0" * 30000
    assert pixels_of(data) == pixels_of(data[:2] + comment + data[2:]) == 33 * 55


@pytest.mark.parametrize("start", [b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF1234WEBPVP8 ", b"II*\0", b""])
def test_damaged_headers_count_as_the_largest(start):
    draw = np.random.default_rng(0)
    for _ in range(300):
        assert 1 <= pixels_of(start + draw.bytes(draw.integers(0, 40)))
    assert pixels_of(start) == MOST_PIXELS


def test_threads_wait_for_their_share():
    """What is held never exceeds the total, whoever asks; an array holds its share until nobody has it."""
    budget, held, most = Budget(10), [0], [0]
    lock = threading.Lock()

    def work(amount):
        for _ in range(50):
            with budget.of(amount):
                with lock:
                    held[0] += min(amount, 10)
                    most[0] = max(most[0], held[0])
                with lock:
                    held[0] -= min(amount, 10)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (1, 3, 6, 10, 99)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and 3 < most[0] <= 10

    with budget.of(10) as share:
        array = share.until_gone(np.zeros(3))
    second = threading.Thread(target=work, args=(1,))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    del array
    gc.collect()
    second.join(20)
    assert not second.is_alive()


def test_a_photograph_is_held_until_it_is_gone(odd):
    """Only where threads hold one each: a caller who keeps many would wait for itself."""
    before = limits.PIXELS._left
    images = Images(odd)
    one, kept = images.read("4.png", in_turn=True), images.read("4.png")
    assert limits.PIXELS._left == before - 35 and (one == kept).all()
    del one
    gc.collect()
    assert limits.PIXELS._left == before


ANSWERS = {
    "no answer": None,
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[{",
    "broken chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[{",
    "no HTTP": b"220 ready\r\n",
    "a redirect to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "redirects without end": b"HTTP/1.1 302 Found\r\nLocation: /d.json\r\nContent-Length: 0\r\n\r\n",
}


@pytest.fixture(params=ANSWERS)
def odd_server(request, monkeypatch):
    """The address of a server that answers every request so."""
    monkeypatch.setattr(image_sources, "SECONDS", {"connect": 1, "sock_read": 1, "total": 3})
    fsspec.implementations.http.HTTPFileSystem.clear_instance_cache()
    listening, clients = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            clients.append(client)
            if (answer := ANSWERS[request.param]) is not None:
                client.recv(1 << 16)
                client.sendall(answer)
                client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)
    for client in clients:
        client.close()
    fsspec.implementations.http.HTTPFileSystem.clear_instance_cache()


def test_odd_servers_end_in_one_line(odd_server):
    begun = time.monotonic()
    with pytest.raises(PosefixError, match=f"^{odd_server}/d.json: .") as error:
        with open_binary(f"{odd_server}/d.json") as file:
            file.read()
    assert "\n" not in str(error.value)
    with pytest.raises(PosefixError, match=f"{odd_server}/i/: ."):
        Images(f"{odd_server}/i/")
    files, path = file_system_of(f"{odd_server}/i.jpg")
    with pytest.raises(OSError):
        Stored(files, path).read()
    assert time.monotonic() - begun < 20


def test_whatever_opening_or_reading_raises_is_one_line(tmp_path):
    with pytest.raises(PosefixError, match="null byte"):
        with open_binary("a\0b"):
            pass
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(PosefixError, match="d.json: no number"):
        with open_binary(str(tmp_path / "d.json")):
            raise ValueError("no number")
