# A heap of dicts, lists and strings as services have them. On request it is changed, or its checksum told.
import sys
import zlib

WORDS = "amber basil cedar delta ember fjord grove haven indigo jasper kestrel linden meadow north orchid prairie".split()
# What one record takes, from CPython 3.11's object sizes: only to turn bytes into a number of records.
RECORD_BYTES = 1150


def numbers(state):
    # A generator of ours: the same heap with every version of Python.
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        yield state >> 33


def record(number, draw):
    first, last = WORDS[next(draw) % 16], WORDS[next(draw) % 16]
    return {
        "id": number,
        "name": first + " " + last,
        "mail": f"{first}.{last}{next(draw) % 10000}@example.org",
        "token": f"{next(draw):08x}{next(draw):08x}",
        "visits": [next(draw) % 100000 for _ in range(6)],
        "scores": {WORDS[next(draw) % 16]: next(draw) / 7 for _ in range(3)},
        "parent": None if number == 0 else next(draw) % number,
    }


def change(heap, draw):
    # A user comes back: counts go up, the token is a new one. One in eight is a new user in place of an old one.
    number = next(draw) % len(heap)
    if next(draw) % 8 == 0:
        heap[number] = record(number, draw)
        return
    user = heap[number]
    user["visits"][next(draw) % 6] = next(draw) % 100000
    user["token"] = f"{next(draw):08x}{next(draw):08x}"
    user["scores"][WORDS[next(draw) % 16]] = next(draw) / 7


draw = numbers(0x5EED)
heap = [record(number, draw) for number in range(int(sys.argv[1]) // RECORD_BYTES)]
print("ready", len(heap), flush=True)
for line in sys.stdin:
    request, *count = line.split()
    if request == "change":
        for _ in range(int(count[0])):
            change(heap, draw)
        print("changed", flush=True)
        continue
    value = 0
    for entry in heap:
        value = zlib.crc32(repr(entry).encode(), value)
    print(value, flush=True)
