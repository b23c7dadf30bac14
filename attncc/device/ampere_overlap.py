"""The weights of a score tile and their product with V, issued piece by piece: while the tensor cores work on 16 keys, the weights of
the next 16 are computed. The same numbers as softmax.step, rescale, convert and multiply_register one after the other.
"""

from cutlass import Float32, cute

from attncc.device import ampere, arith, softmax

KEYS = 16
"""Keys of one step: the depth of one mma.sync."""


def statistics(scores, row_max, correction, multiplier: float, guard: bool, slack: float = 0.0):
    """Moves the maximum of each row on; the factor for what was accumulated goes to `correction`. Returns -multiplier * maximum of
    each row."""
    columns = cute.size(scores, mode=[1])
    shifts = []
    for r in range(cute.size(scores, mode=[0])):
        old = row_max[r]
        largest = softmax.quad_maximum(softmax.maximum([scores[r, c] for c in range(columns)] + [old]))
        if slack:
            largest = arith.select((largest - old) * Float32(multiplier) <= Float32(slack), old, largest)
        row_max[r] = largest
        if guard:
            largest = arith.select(largest == -Float32.inf, Float32(0.0), largest)
        shift = largest * Float32(-multiplier)
        correction[r] = arith.exp2((old - largest) * Float32(multiplier))
        shifts.append(shift)
    return shifts


def weigh_and_multiply(result, scores, row_sum, shifts, correction, multiplier: float, right, lanes, offset, dtype):
    """result += weights . right; `row_sum` moves on. `shifts` from `statistics`."""
    rows = cute.size(scores, mode=[0])
    sums = [row_sum[r] * correction[r] for r in range(rows)]
    base = right.address + offset
    depth = cute.size(scores, mode=[1]) // 4
    columns = cute.size(result, mode=[2]) // 2

    def weights(k):
        """Pieces of work that leave the left fragments of step k in `fragments[k]`: one for each pair of columns of a row."""
        fragments[k] = [[None] * 4 for _ in range(rows // 2)]

        def pair(r, half):
            c = 4 * k + 2 * half
            low, high = (
                arith.exp2(cute.math.fma(scores[r, c + i], Float32(multiplier), shifts[r])) for i in range(2)
            )
            sums[r] = sums[r] + (low + high)
            fragments[k][r // 2][r % 2 + 2 * half] = ampere.pack(low, high, dtype)

        return [(r, half, pair) for half in range(2) for r in range(rows)]

    def load(k, n):
        return ampere.load_matrices(ampere.fragment_address(right, lanes, k, n, base), True)

    fragments = {}
    for r, half, pair in weights(0):
        pair(r, half)
    steps = [(k, n) for k in range(depth) for n in range(columns)]
    rights = [load(*s) for s in steps[: ampere.LOOKAHEAD]]
    pending = []
    for s, (k, n) in enumerate(steps):
        if n == 0 and k + 1 < depth:
            pending = weights(k + 1)
        if s + ampere.LOOKAHEAD < len(steps):
            rights.append(load(*steps[s + ampere.LOOKAHEAD]))
        ampere._multiply_step(result, fragments[k], rights[s], n, True, dtype)
        share = -(-len(pending) // (columns - n))
        for r, half, pair in pending[:share]:
            pair(r, half)
        pending = pending[share:]
    for r in range(rows):
        row_sum[r] = sums[r]
