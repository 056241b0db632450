"""The contrastive losses of a batch that lies on several ranks, exactly: value and gradients are the whole batch's.

Every rank has its own n of the N pairs. Blocks of text embeddings travel round the ring of ranks with what was added up
for them so far, once for the loss and once for the gradients, and come home complete. A rank holds two such blocks and
logits of ``ROWS`` of its rows against one of them: memory grows with n, never with N. With ``gather`` all blocks come
at once and what was added goes home at once: fewer messages, and each rank holds N text embeddings and their gradients.

The gradients that a rank gets are multiplied by the number of ranks, so that their mean over ranks, which is what
``DistributedDataParallel`` takes, is the gradient of the whole batch.
"""

import torch
from torch import distributed
from torch.autograd.function import once_differentiable
from torch.distributed import P2POp

import saccade
from saccade.torch.arrays import compute_dtype
from saccade.torch.losses import factor

ROWS = 1024  # of logits at a time


def clip_loss(image_embeddings, text_embeddings, logit_scale, *, group=None, gather=False):
    """``saccade.clip_loss`` of the pairs of all ranks of ``group``; every rank has the same number of them."""
    if _alone(group):
        return saccade.clip_loss(image_embeddings, text_embeddings, logit_scale)
    scale = factor(logit_scale, image_embeddings)
    return _ClipLoss.apply(image_embeddings, text_embeddings, scale, (_Gathered if gather else _Ring)(group))


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias, *, group=None, gather=False):
    """``saccade.siglip_loss`` of the pairs of all ranks of ``group``; every rank has the same number of them."""
    if _alone(group):
        return saccade.siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias)
    factors = (factor(x, image_embeddings) for x in (logit_scale, logit_bias))
    return _SiglipLoss.apply(image_embeddings, text_embeddings, *factors, (_Gathered if gather else _Ring)(group))


def _alone(group):
    return not distributed.is_initialized() or distributed.get_world_size(group) == 1


class _Ranks:
    """The ranks of a group."""

    def __init__(self, group):
        self.group = group
        self.rank, self.count = distributed.get_rank(group), distributed.get_world_size(group)

    def total(self, x):
        """The sum over ranks."""
        distributed.all_reduce(x, group=self.group)
        return x


class _Ring(_Ranks):
    """The ranks of a group in a circle."""

    def __init__(self, group):
        super().__init__(group)
        self.next, self.previous = (self._member((self.rank + step) % self.count) for step in (1, -1))

    def _member(self, rank):
        return rank if self.group is None else distributed.get_global_rank(self.group, rank)

    def sent(self, tensors):
        """Begin to pass tensors on; call what it returns for those that come from the rank before."""
        if not tensors:
            return list
        came = [torch.empty_like(x) for x in tensors]
        operations = [P2POp(distributed.isend, x.contiguous(), self.next, self.group) for x in tensors]
        operations += [P2POp(distributed.irecv, x, self.previous, self.group) for x in came]
        works = distributed.batch_isend_irecv(operations)

        def received():
            for work in works:
                work.wait()
            return came

        return received

    def round(self, fixed, added, visit, together=torch.sum):
        """Let a block go once round: ``visit(home, fixed, added)`` on each rank; what was added comes home.

        Args:
            fixed: tensors of this rank's block, which travel while the last one is worked on.
            added: tensors that visits change in place; they begin as what adds nothing.
            visit: gets the rank that the block is of, and its tensors.
            together: ``together(x, 0)`` of what ranks added to a block apart, which here none does.
        """
        for step in range(self.count):
            received = self.sent(fixed if step < self.count - 1 else [])
            visit((self.rank - step) % self.count, fixed, added)
            added = self.sent(added)()
            fixed = received()
        return added


class _Gathered(_Ranks):
    """The ranks of a group that have all blocks at once."""

    def round(self, fixed, added, visit, together=torch.sum):
        """As ``_Ring.round``, but ranks visit every block at a time."""
        blocks = [self._of_all(x) for x in fixed]
        parts = [x.repeat(self.count, *[1] * x.ndim) for x in added]
        for home in range(self.count):
            visit(home, [x[home] for x in blocks], [x[home] for x in parts])
        return [together(self._sent_home(x), 0) for x in parts]

    def _of_all(self, x):
        found = x.new_empty(self.count, *x.shape)
        distributed.all_gather(list(found), x.contiguous(), group=self.group)
        return found

    def _sent_home(self, x):
        found = torch.empty_like(x)
        distributed.all_to_all_single(found, x, group=self.group)
        return found


def _products(images, texts, own):
    """``ROWS`` rows at a time: (rows, their products with the texts, where the pairs are among them or None)."""
    for start in range(0, len(images), ROWS):
        rows = slice(start, start + ROWS)
        products = images[rows] @ texts.T
        here = torch.arange(len(products), device=products.device)
        yield rows, products, (here, here + start) if own else None


class _ClipLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, texts, logit_scale, ring):
        wide_images, wide_texts, scale = _wide(images, texts, logit_scale)
        nothing = wide_images.new_full((len(images),), -torch.inf)
        of_rows, own = nothing.clone(), nothing.clone()

        def visit(home, fixed, added):
            (block,), (of_columns,) = fixed, added
            for rows, products, pairs in _products(wide_images, block, home == ring.rank):
                logits = scale * products
                of_rows[rows] = torch.logaddexp(of_rows[rows], logits.logsumexp(1))
                torch.logaddexp(of_columns, logits.logsumexp(0), out=of_columns)
                if pairs is not None:
                    own[rows] = logits[pairs]

        (of_columns,) = ring.round([wide_texts], [nothing], visit, torch.logsumexp)
        loss = ring.total((of_rows + of_columns - 2 * own).sum()) / (2 * ring.count * len(images))
        ctx.save_for_backward(images, texts, logit_scale, of_rows, of_columns)
        ctx.ring = ring
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        images, texts, logit_scale, of_rows, of_columns = ctx.saved_tensors
        each = grad_loss / (2 * len(images))  # times the number of ranks, over all pairs

        def slopes(rows, logits, pairs, of_columns):
            both = (logits - of_rows[rows, None]).exp() + (logits - of_columns).exp()
            if pairs is not None:
                both[pairs] -= 2
            return both * each

        gradients = _gradients(ctx.ring, images, texts, logit_scale, 0.0, [of_columns], slopes)
        return *gradients[:3], None


class _SiglipLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, texts, logit_scale, logit_bias, ring):
        wide_images, wide_texts, scale = _wide(images, texts, logit_scale)
        bias, total = logit_bias.to(scale), wide_images.new_zeros(())

        def visit(home, fixed, added):
            for _, products, pairs in _products(wide_images, fixed[0], home == ring.rank):
                logits = scale * products + bias
                if pairs is not None:
                    logits[pairs] *= -1
                total.add_(torch.nn.functional.softplus(logits).sum())

        ring.round([wide_texts], [], visit)
        ctx.save_for_backward(images, texts, logit_scale, logit_bias)
        ctx.ring = ring
        return ring.total(total) / (ring.count * len(images))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        images, texts, logit_scale, logit_bias = ctx.saved_tensors
        each = grad_loss / len(images)

        def slopes(rows, logits, pairs):
            slope = logits.sigmoid()
            if pairs is not None:
                slope[pairs] -= 1
            return slope * each

        return *_gradients(ctx.ring, images, texts, logit_scale, logit_bias, [], slopes), None


def _wide(images, texts, *factors):
    """In float32 at least."""
    dtype = compute_dtype(images.dtype)
    return images.to(dtype), texts.to(dtype), *(x.to(dtype) for x in factors)


def _gradients(ring, images, texts, logit_scale, logit_bias, beside, slopes):
    """Gradients for both embeddings, the scale and the bias, by a second round.

    ``slopes(rows, logits, pairs, *beside)`` are those of the logits; tensors ``beside`` travel with their block.
    """
    wide_images, wide_texts, scale = _wide(images, texts, logit_scale)
    grad_images = torch.zeros_like(wide_images)
    grad_scale, grad_bias = torch.zeros_like(scale), torch.zeros_like(scale)

    def visit(home, fixed, added):
        block, *others = fixed
        for rows, products, pairs in _products(wide_images, block, home == ring.rank):
            slope = slopes(rows, scale * products + logit_bias, pairs, *others)
            grad_scale.add_((slope * products).sum())
            grad_bias.add_(slope.sum())
            slope = slope * scale
            grad_images[rows] += slope @ block
            added[0].addmm_(slope.T, wide_images[rows])

    (grad_texts,) = ring.round([wide_texts, *beside], [torch.zeros_like(wide_texts)], visit)
    return grad_images.to(images), grad_texts.to(texts), grad_scale.to(logit_scale), grad_bias.to(logit_scale)
