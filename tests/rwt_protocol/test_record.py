"""Record protection: every flag combination, tampering, order, usage limits, padding and compression (section 8)."""

import struct
import zlib
from itertools import combinations
from random import Random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from rwt_protocol import key_schedule, limits
from rwt_protocol.codes import CloseCode, Flag, Level
from rwt_protocol.errors import RWTEncryptionError, RWTProtocolError
from rwt_protocol.key_schedule import DirectionKeys
from rwt_protocol.record import (
    LEVEL_FLAGS,
    USAGE,
    Opener,
    Sealer,
    UsageLimits,
    deflate,
    inflate,
    level_of,
    pad,
    padme,
    unpad,
)

KEYS = DirectionKeys(bytes(range(32)), bytes(range(100, 112)), bytes(range(50, 82)))
E, P, Z, R, B = (int(flag) for flag in Flag)
ALL_FLAGS = [sum(chosen) for size in range(6) for chosen in combinations((E, P, Z, R, B), size)]
MSG = 0x20
MODES = [pytest.param(E, id="encrypted"), pytest.param(0, id="clear"), pytest.param(E | P | R, id="ratchet")]


def pair(epoch: int = 3, usage: UsageLimits = USAGE) -> tuple[Sealer, Opener]:
    return Sealer(KEYS, epoch, usage), Opener(KEYS, epoch, usage)


def open_frame(opener: Opener, data: bytes) -> bytes:
    _, flags, _, _, seq = struct.unpack_from(">BBHIQ", data)
    return opener.open(data, flags, seq)


def refused(opener: Opener, data: bytes, flags: int | None = None, seq: int | None = None) -> None:
    """`data` does not open, and that changes nothing."""
    before = (opener.count, opener.used, opener.epoch)
    real = struct.unpack_from(">BBHIQ", data)
    with pytest.raises(RWTProtocolError) as caught:
        opener.open(data, real[1] if flags is None else flags, real[4] if seq is None else seq)
    assert caught.value.close_code is CloseCode.PROTOCOL_ERROR
    assert (opener.count, opener.used, opener.epoch) == before


# --- sealing and opening ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [pytest.param(flags, id=f"{flags:#04x}") for flags in ALL_FLAGS])
@pytest.mark.parametrize("payload", [b"", b"x", bytes(1000)], ids=["0", "1", "1000"])
def test_round_trip(flags: int, payload: bytes) -> None:
    sealer, opener = pair()
    for seq in range(3):
        data = sealer.seal(MSG, flags, 5, payload)
        assert data[:16] == struct.pack(">BBHIQ", MSG, flags, 3, 5, seq)
        assert len(data) == limits.HEADER_SIZE + len(payload) + limits.TAG_SIZE
        assert open_frame(opener, data) == payload
    assert (sealer.count, sealer.used) == (opener.count, opener.used) == (3, 3 * len(payload))


@pytest.mark.parametrize("flags", MODES)
def test_bytes_of_a_frame(flags: int) -> None:
    """Section 8.3 written out once more."""
    sealer, _ = pair(0x12345)
    state = KEYS.ratchet
    for seq in range(3):
        header = struct.pack(">BBHIQ", MSG, flags, 0x2345, 7, seq)
        nonce = (int.from_bytes(KEYS.iv, "big") ^ seq).to_bytes(12, "big")
        key = KEYS.key
        if flags & R:
            key, state = key_schedule.expand(state, b"msg"), key_schedule.expand(state, b"next")
        if flags & E:
            expected = header + AESGCM(key).encrypt(nonce, b"payload", header)
        else:
            expected = header + b"payload" + AESGCM(key).encrypt(nonce, b"", header + b"payload")
        assert sealer.seal(MSG, flags, 7, b"payload") == expected


def test_one_counter_for_all_modes_and_the_ratchet_moves_with_its_frames_only() -> None:
    sealer, opener = pair()
    for seq, flags in enumerate((E, E | P | R, 0, E | P | R, E)):
        data = sealer.seal(MSG, flags, 5, b"payload")
        assert struct.unpack(">Q", data[8:16])[0] == seq
        assert open_frame(opener, data) == b"payload"


@pytest.mark.parametrize("flags", MODES)
def test_every_flipped_bit_is_noticed_and_changes_nothing(flags: int) -> None:
    sealer, opener = pair()
    open_frame(opener, sealer.seal(MSG, flags, 5, b"before"))
    data = sealer.seal(MSG, flags, 5, b"payload!")
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        refused(opener, bytes(bad), flags=flags, seq=1)
        refused(opener, bytes(bad))
    # The true frame and the one behind it still open.
    assert open_frame(opener, data) == b"payload!"
    assert open_frame(opener, sealer.seal(MSG, flags, 5, b"after")) == b"after"


@pytest.mark.parametrize("flags", MODES)
def test_cut_and_longer_frames(flags: int) -> None:
    sealer, opener = pair()
    data = sealer.seal(MSG, flags, 5, b"payload!")
    for cut in range(1, 25):
        if len(data) - cut >= limits.MIN_FRAME:
            refused(opener, data[:-cut])
    refused(opener, data + b"\0")
    refused(opener, data[:16] + b"\0" + data[16:])
    assert open_frame(opener, data) == b"payload!"


@pytest.mark.parametrize("flags", MODES)
def test_order(flags: int) -> None:
    sealer, opener = pair()
    data = [sealer.seal(MSG, flags, 5, bytes((index,))) for index in range(4)]
    refused(opener, data[1])  # one is missing
    assert open_frame(opener, data[0]) == b"\0"
    refused(opener, data[0])  # replayed
    refused(opener, data[0], seq=1)
    refused(opener, data[2], seq=1)
    refused(opener, data[3])
    assert open_frame(opener, data[1]) == b"\1"


@pytest.mark.parametrize(
    ("sent", "claimed"),
    [(0, E), (E, 0), (E, E | P | R), (E | P | R, E | P), (E, E | P)],
    ids=["clear as E", "E as clear", "E as R", "R as P", "E as P"],
)
def test_flags_cannot_be_changed(sent: int, claimed: int) -> None:
    sealer, opener = pair()
    data = sealer.seal(MSG, sent, 5, b"payload!")
    changed = data[:1] + bytes((claimed,)) + data[2:]
    refused(opener, changed)
    assert open_frame(opener, data) == b"payload!"


def test_keys_of_another_direction_or_epoch_do_not_open() -> None:
    sealer, _ = pair()
    data = sealer.seal(MSG, E, 5, b"payload!")
    for keys in (
        DirectionKeys(bytes(32), KEYS.iv, KEYS.ratchet),
        DirectionKeys(KEYS.key, bytes(12), KEYS.ratchet),
    ):
        refused(Opener(keys, 3), data)
    assert open_frame(Opener(DirectionKeys(KEYS.key, KEYS.iv, bytes(32)), 3), data) == b"payload!"
    ratcheted = sealer.seal(MSG, E | P | R, 5, b"payload!")
    refused(Opener(DirectionKeys(KEYS.key, KEYS.iv, bytes(32)), 3), ratcheted, seq=0)


def test_an_earlier_message_of_the_ratchet_cannot_be_opened_again() -> None:
    sealer, opener = pair()
    data = sealer.seal(MSG, E | P | R, 5, b"payload!")
    open_frame(opener, data)
    opener.count = 0  # even for whoever holds the state right behind it
    refused(opener, data)


def test_rest_drops_nothing_that_matters() -> None:
    sealer, opener = pair()
    for _ in range(3):
        assert open_frame(opener, sealer.seal(MSG, E, 5, b"x")) == b"x"
        sealer.rest()
        opener.rest()


def test_keys_do_not_print() -> None:
    sealer, opener = pair()
    assert (repr(sealer), repr(opener)) == ("<Sealer epoch=3 count=0>", "<Opener epoch=3 count=0>")


# --- usage limits ----------------------------------------------------------------------------------------

SMALL = UsageLimits(rekey_frames=3, rekey_bytes=100, stop_frames=5, stop_bytes=200)


def test_limits_of_the_specification() -> None:
    assert UsageLimits(2**22, 2**36, 2**23, 2**37) == USAGE


@pytest.mark.parametrize("flags", MODES)
def test_frames_of_one_key(flags: int) -> None:
    sealer, opener = pair(usage=SMALL)
    for count in range(5):
        for side in (sealer, opener):
            assert (side.worn, side.exhausted) == (count >= 3, False)
        assert open_frame(opener, sealer.seal(MSG, flags, 5, b"x")) == b"x"
    assert sealer.exhausted and opener.exhausted
    with pytest.raises(RWTEncryptionError) as caught:
        sealer.seal(MSG, flags, 5, b"x")
    assert caught.value.code == "key-exhausted"
    assert (sealer.count, sealer.used) == (5, 5)
    sixth = Sealer(KEYS, 3)
    sixth.count = 5
    refused(opener, sixth.seal(MSG, flags, 5, b"x"))


@pytest.mark.parametrize("flags", MODES)
def test_bytes_of_one_key(flags: int) -> None:
    sealer, opener = pair(usage=SMALL)
    for size, worn, exhausted in ((99, False, False), (1, True, False), (99, True, False), (1, True, True)):
        open_frame(opener, sealer.seal(MSG, flags, 5, bytes(size)))
        for side in (sealer, opener):
            assert (side.worn, side.exhausted) == (worn or side.count >= 3, exhausted)
    with pytest.raises(RWTEncryptionError):
        sealer.seal(MSG, flags, 5, b"")
    fifth = Sealer(KEYS, 3)
    fifth.count = 4
    refused(opener, fifth.seal(MSG, flags, 5, b""))


@pytest.mark.parametrize("flags", MODES)
def test_payload_bytes_are_counted_and_nothing_else(flags: int) -> None:
    sealer, opener = pair()
    for size in (0, 1, 64, 1000):
        open_frame(opener, sealer.seal(MSG, flags, 5, bytes(size)))
    assert sealer.used == opener.used == 1065


# --- levels ----------------------------------------------------------------------------------------------


def test_level_of_flags() -> None:
    for flags in ALL_FLAGS:
        expected = "MAXIMUM" if flags & R else "HIGH" if flags & P else "STANDARD" if flags & E else "CLEAR"
        assert level_of(flags).name == expected, flags


def test_flags_of_levels() -> None:
    assert {level: LEVEL_FLAGS[level] for level in Level} == {
        Level.CLEAR: 0,
        Level.STANDARD: E,
        Level.HIGH: E | P,
        Level.MAXIMUM: E | P | R,
    }
    assert all(level_of(flags) is level for level, flags in LEVEL_FLAGS.items())


# --- padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "padded"),
    [
        (1, 64),
        (63, 64),
        (64, 64),
        (65, 72),
        (72, 72),
        (73, 80),
        (101, 104),
        (127, 128),
        (128, 128),
        (129, 144),
        (256, 256),
        (257, 272),
        (1_001, 1_024),
        (1_025, 1_088),
        (65_536, 65_536),
        (65_537, 67_584),
        (2**20, 2**20),
        (2**20 + 1, 2**20 + 2**15),
    ],
)
def test_padme(length: int, padded: int) -> None:
    assert padme(length) == padded


def formula(length: int) -> int:
    """padme(L) of section 8.5 for L > 64, with bit lengths in place of logarithms."""
    e = len(f"{length:b}") - 1
    s = len(f"{e:b}")
    unit = 1 << (e - s)
    return (length + unit - 1) // unit * unit


def test_padme_up_to_65536() -> None:
    found = [padme(length) for length in range(1, 65_537)]
    assert found == [max(64, formula(length)) if length > 64 else 64 for length in range(1, 65_537)]
    assert found == sorted(found)
    assert all(padme(length) == length for length in set(found))


def test_payloads_of_1_to_65536_bytes_fall_into_146_lengths_and_grow_by_an_eighth_at_most() -> None:
    found = {length: padme(length + 1) for length in range(1, 65_537)}
    assert len(set(found.values())) == 146
    for length, padded in found.items():
        assert (padded - length) * 8 <= length or length < 57
        assert padded == 64 or length > 63
    assert (found[56] - 56) * 8 > 56


@pytest.mark.parametrize("length", [0, 1, 62, 63, 64, 71, 72, 100, 1_000, 65_535, 65_536])
def test_pad_and_unpad(length: int) -> None:
    for data in (bytes(length), b"\x80" * length, b"\x01" * length):
        padded = pad(data)
        assert len(padded) == padme(length + 1)
        assert padded == data + b"\x80" + bytes(len(padded) - length - 1)
        assert unpad(padded) == data


@pytest.mark.parametrize(
    ("length", "padded"),
    [(0, 64), (63, 64), (64, 72), (100, 104), (1_000, 1_024), (65_535, 65_536), (65_536, 67_584)],
)
def test_padded_lengths_of_the_specification(length: int, padded: int) -> None:
    assert len(pad(bytes(length))) == padded


@pytest.mark.parametrize("zeros", [0, 1, 200])
def test_any_amount_of_padding_is_accepted(zeros: int) -> None:
    assert unpad(b"data\x80\x80" + bytes(zeros)) == b"data\x80"


@pytest.mark.parametrize(
    "data",
    [b"", bytes(64), b"x", b"x" + bytes(63), b"\x80\x01", b"\x81" + bytes(9)],
    ids=lambda data: repr(data[:3]),
)
def test_padding_without_end_mark(data: bytes) -> None:
    with pytest.raises(RWTProtocolError) as caught:
        unpad(data)
    assert caught.value.close_code is CloseCode.PROTOCOL_ERROR


@given(st.binary(max_size=300))
@settings(derandomize=True, max_examples=200, deadline=None, database=None)
def test_unpad_inverts_pad(data: bytes) -> None:
    assert unpad(pad(data)) == data


# --- compression -----------------------------------------------------------------------------------------

MOST = 2 + limits.MAX_META + limits.MAX_MESSAGE
NOISE = Random(1).randbytes(1 << 16)
TEXT = b"".join(b"%d times around the clock; " % index for index in range(4_000))


def raw_deflate(data: bytes, level: int = 9) -> bytes:
    packer = zlib.compressobj(level, wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        pytest.param(TEXT[:255], False, id="255 bytes"),
        pytest.param(TEXT[:256], True, id="256 bytes"),
        pytest.param(TEXT, True, id="text"),
        pytest.param(NOISE, False, id="noise"),
        pytest.param(b"", False, id="empty"),
        pytest.param(bytes(1 << 20), False, id="zeros, over 100 to 1"),
        pytest.param(b"ab" * 300, True, id="short and regular"),
    ],
)
def test_what_is_compressed(data: bytes, sent: bool) -> None:
    packed = deflate(data)
    assert (packed is not None) is sent
    if packed is not None:
        assert inflate(packed, MOST) == data
        assert len(packed) * 8 <= len(data) * 7


def test_an_eighth_must_be_saved_and_no_more_than_100_to_1() -> None:
    saved, ratio = set(), set()
    for noise in range(1, 1_000):
        data = NOISE[:noise] + bytes(1_000 - noise)
        packed = raw_deflate(data, limits.COMPRESS_LEVEL)
        assert (deflate(data) is not None) is (len(packed) * 8 <= 7_000)
        saved.add(len(packed) - 875)
    for size in range(256, 6_000):
        packed = raw_deflate(bytes(size), limits.COMPRESS_LEVEL)
        assert (deflate(bytes(size)) is not None) is (size <= 100 * len(packed))
        ratio.add(size - 100 * len(packed))
    assert {0, 1} <= saved and {0, 1} <= ratio  # both sides of each limit were met


def test_level_is_the_callers() -> None:
    fast, best = deflate(TEXT, 1), deflate(TEXT, 9)
    assert fast is not None and best is not None
    assert len(best) < len(fast)


def test_any_window_and_block_type_inflates() -> None:
    for level in range(10):
        assert inflate(raw_deflate(NOISE + TEXT, level), MOST) == NOISE + TEXT


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", 4400, id="empty"),
        pytest.param(raw_deflate(TEXT)[:-1], 4400, id="cut short"),
        pytest.param(raw_deflate(TEXT)[:10], 4400, id="cut early"),
        pytest.param(raw_deflate(TEXT) + b"\0", 4400, id="a byte left over"),
        pytest.param(raw_deflate(TEXT) * 2, 4400, id="two streams"),
        pytest.param(zlib.compress(TEXT), 4400, id="zlib header"),
        pytest.param(b"\x07" + bytes(20), 4400, id="block type 3"),
        pytest.param(NOISE[:64], 4400, id="noise"),
        pytest.param(raw_deflate(bytes(1 << 20)), 4413, id="1000 to 1"),
        pytest.param(raw_deflate(bytes(100 << 20)), 4413, id="100 MiB of zeros"),
        pytest.param(raw_deflate(raw_deflate(bytes(100 << 20))), 4413, id="nested bomb"),
    ],
)
def test_inflate_refuses(data: bytes, code: int) -> None:
    if code == 4413 and len(data) < 1_000:
        # The outer layer of a nested bomb is within the ratio or not; the inner one never is.
        try:
            data = inflate(data, MOST)
        except RWTProtocolError:
            pass
    with pytest.raises(RWTProtocolError) as caught:
        inflate(data, MOST)
    assert caught.value.close_code == code


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_inflate_at_its_size_limit(shift: int) -> None:
    packed = raw_deflate(TEXT)
    most = len(TEXT) + shift
    if shift < 0:
        with pytest.raises(RWTProtocolError) as caught:
            inflate(packed, most)
        assert caught.value.close_code is CloseCode.TOO_LARGE
    else:
        assert inflate(packed, most) == TEXT


def test_inflate_at_the_ratio_of_100() -> None:
    met = set()
    for size in range(1, 8_000):
        packed = raw_deflate(bytes(size), limits.COMPRESS_LEVEL)
        over = size - 100 * len(packed)
        if over in (0, 1):
            met.add(over)
            if over:
                with pytest.raises(RWTProtocolError) as caught:
                    inflate(packed, MOST)
                assert caught.value.close_code is CloseCode.TOO_LARGE
            else:
                assert inflate(packed, MOST) == bytes(size)
    assert met == {0, 1}


@given(st.binary(max_size=100))
@settings(derandomize=True, max_examples=300, deadline=None, database=None)
def test_any_bytes_inflate_or_are_refused(data: bytes) -> None:
    try:
        assert len(inflate(data, MOST)) <= 100 * len(data)
    except RWTProtocolError as exc:
        assert exc.close_code in (CloseCode.PROTOCOL_ERROR, CloseCode.TOO_LARGE)
