"""One review at a server: what is sent, and the verdict of what comes back, as it comes.

The dial is decided on the first token's log-probabilities (`dial`). Where it says keep and the
model did not, the answer is over: the verdict is keep. Where the model said keep and it does not,
the review is asked once more, with the best other token as the beginning of the answer.
"""

from typing import Any

from stream_aligner_proxy.aligners.dial import decide
from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.framing import Framed, judge
from stream_aligner_proxy.aligners.options import Sampling
from stream_aligner_proxy.aligners.remote_pool import key_of
from stream_aligner_proxy.aligners.remote_server import BrokeOff, Pieces, Server
from stream_aligner_proxy.aligners.remote_wire import (
    Abilities,
    Answer,
    IdAnswer,
    Piece,
    TextAnswer,
    body,
    by_id,
    holds_mark,
)
from stream_aligner_proxy.aligners.telling import Telling
from stream_aligner_proxy.core.errors import ReviewError, Unreviewable
from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.records import NEUTRAL, Review, Verdict


class Asking:
    """One review on its way. `body` and `read` may be called for one server after another, until
    `read` gives a verdict."""

    def __init__(
        self,
        encoder: Encoder,
        review: Review,
        framed: Framed,
        sampling: Sampling,
        progress: Progress | None = None,
    ) -> None:
        self.key = key_of(review)
        self.headers = review.headers
        self._encoder = encoder
        self._review = review
        self._framed = framed
        self._sampling = sampling
        self._progress = progress
        self._dialled = review.strength != NEUTRAL
        self._begun: tuple[int, ...] = ()  # what the dial has chosen as the answer's first token
        self._read = self._written = 0  # tokens, over all answers

    def body(self, server: Server) -> dict[str, Any]:
        """The request. Raises `ReviewError` for what this server cannot do."""
        abilities = _known(server)
        if self._dialled and not (abilities.chances and self._encoder.keep is not None):
            raise Unreviewable("the aligner's server cannot be dialled: it tells no chances")
        data = self._encoder.profile.render(self._review)
        if not abilities.ids and holds_mark(data, self._encoder):
            raise Unreviewable(
                "the text holds the name of a control token, and the aligner's server gives no ids"
            )
        return body(
            self._encoder,
            server.model,
            (*self._framed.prompt, *self._begun),
            max(1, self._framed.room - len(self._begun)),
            abilities,
            sampling=self._sampling,
            chances=self._dialled,
        )

    async def read(self, pieces: Pieces, server: Server) -> Verdict | None:
        """The verdict; None where the dial says to ask again. Raises `ReviewError`."""
        kind = IdAnswer if _known(server).ids else TextAnswer
        answer: Answer = kind(self._encoder, self._begun)
        self._read += len(self._framed.prompt) + len(self._begun)
        finish: str | None = None
        telling = Telling(self._progress)
        async for piece in pieces:
            answer.add(piece)
            if self._dialled and answer.size:
                self._dialled = False
                chosen, meant = self._dial(piece)
                if chosen == self._encoder.keep != meant:
                    return self._counted(Verdict(), answer.size)
                if meant == self._encoder.keep != chosen:
                    self._begun = (chosen,)
                    if chosen not in self._encoder.ends:
                        self._written += answer.size
                        return None
                    answer, finish = kind(self._encoder, self._begun), "stop"
            finish = finish or piece.finish
            if finish or answer.over:
                break
            if telling.due(answer.size):
                telling.tell(answer.beginning(), answer.size)
        if finish is None and not answer.over:
            raise BrokeOff()
        if finish not in (None, "stop", "length"):
            raise Unreviewable(f"the aligner's server ended the revision: {finish!r}")
        revision = answer.revision(finished=finish == "stop")
        verdict = judge(self._encoder.profile, revision, self._review)
        return self._counted(verdict, answer.size)

    def _dial(self, piece: Piece) -> tuple[int, int | None]:
        """The first token that the dial chooses, and the one that the model did."""
        encoder = self._encoder
        if not piece.chances or piece.token is None:
            raise Unreviewable("the aligner's server left out the chances of the first token")
        assert encoder.keep is not None
        meant = piece.token if isinstance(piece.token, int) else encoder.token_of(piece.token)
        chances = by_id(piece.chances, encoder)
        for token in encoder.meaningless & chances.keys():
            del chances[token]
        chosen = decide(chances, encoder.keep, self._review.strength)
        if chosen < 0 and meant == encoder.keep:
            raise Unreviewable(
                "the aligner's server names a token that the tokenizer does not know"
            )
        return chosen, meant

    def _counted(self, verdict: Verdict, written: int) -> Verdict:
        self._written += written
        return Verdict(verdict.replacement, verdict.end, self._read, self._written)


def _known(server: Server) -> Abilities:
    if server.abilities is None:
        raise ReviewError("the aligner's server has not been up yet")
    return server.abilities
