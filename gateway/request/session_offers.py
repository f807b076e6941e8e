"""What a session's next response and next transcription are offered at, and which models it may name. Decides nothing
about money: that is the ledger's."""

from collections.abc import Sequence

from gateway.endpoints.endpoint import OUTPUT_TOKENS, InvalidRequest
from gateway.endpoints.realtime import (
    Conversation,
    Extent,
    RealtimeEndpoint,
    Sound,
    TranscriptionEndpoint,
    response_request,
    transcription_request,
)
from gateway.endpoints.realtime_frames import FromClient, SessionSettings, with_models
from gateway.errors import Failure, Refused
from gateway.request.admit import Offer, Route, find, priced
from gateway.request.authenticate import Principal
from gateway.request.tab import Found, Item, Payer


class SessionOffers:
    """The offers of one session, and the conversation that they follow from."""

    def __init__(self, payer: Payer, model: str) -> None:
        self.conversation = Conversation()
        self.transcriber = ""  # the last one that was admitted
        self._payer = payer
        self._shelf = payer.gateway.shelf
        self._model = model
        self._output_tokens_max = 0
        self._transcribers: set[str] = set()  # by the upstream's names

    def find_model(self, principal: Principal) -> Found:
        """The session's model as it is on offer now. Raises ModelNotFound."""
        found = find(principal, self._shelf(), self._model)
        self._output_tokens_max = found[0].output_tokens_max
        return found

    def find_transcriber(self, principal: Principal) -> Found:
        """Raises ModelNotFound."""
        return find(principal, self._shelf(), self.transcriber)

    def response(self, extent: Extent, found: Found) -> Offer:
        """Raises ModelNotFound where a meter has no price."""
        estimated = self.conversation.estimate()
        request = response_request(self._model, extent, estimated, found[0], found[1], OUTPUT_TOKENS)
        return priced(RealtimeEndpoint(), request, b"", found, min_output_tokens=1, hold_slice_tokens=1)

    def transcription(self, sound: Sound, found: Found) -> Offer:
        """Raises ModelNotFound where it has no price."""
        request = transcription_request(found[0].name, sound, found[0])
        endpoint = TranscriptionEndpoint(sound.milliseconds)
        return priced(endpoint, request, b"", found, min_output_tokens=1, hold_slice_tokens=1)

    def need(self, running_tokens: int, own_cap: int | None) -> Extent:
        """Of the next response, which may produce `own_cap` tokens where it has a cap of its own."""
        most = self._most()
        given = self.conversation.output_tokens_max(most)
        if own_cap is not None:
            # Where there is sound, the upstream may answer of itself, and with the session's cap.
            given = max(given, own_cap) if self.conversation.has_audio else own_cap
        return self.conversation.extent(min(given, most), running_tokens)

    def own_cap(self, frame: FromClient) -> int | None:
        """The cap of the response that a frame asks for; None where it has the session's."""
        if not frame.starts or not frame.sets_output_cap:
            return None
        return self._most() if frame.output_cap is None else min(frame.output_cap, self._most())

    def _most(self) -> int:
        """Also where the model is on offer no more: what runs is still to be charged."""
        return self._output_tokens_max or self.find_model(self._payer.principal)[0].output_tokens_max

    def admit(self, frame: FromClient) -> bytes:
        """What to send upstream for a frame, which counts from here on. Raises InvalidRequest, ModelNotFound."""
        route = self._route()
        if frame.model is not None and frame.model not in (self._model, route.model):
            message = "The model of a session cannot be changed: open another."
            raise InvalidRequest(message, param="session.model", code="not_metered")
        if frame.is_unbounded and self._payer.gateway.stored_context == "refuse":
            message = "What only the upstream knows is not taken here: nobody here knows its size."
            raise InvalidRequest(message, code="not_metered")
        named = None if frame.session is None else frame.session.transcription
        renamed = None if named is None else self._admit_transcriber(named)
        model = route.model if frame.model not in (None, route.model) else None
        self.conversation.add(frame)
        return frame.data if model is None and renamed == named else with_models(frame, model, renamed)

    def _admit_transcriber(self, name: str) -> str:
        """The upstream's name of a model that transcribes. Raises InvalidRequest, ModelNotFound."""
        serving = self._route().upstream.name
        found = find(self._payer.principal, self._shelf(), name)
        there = [route.model for route in found[2] if route.upstream.name == serving]
        if not there:
            message = "The upstream of this session does not serve this model."
            raise InvalidRequest(message, param="session.audio.input.transcription.model", code="not_metered")
        self.transcription(self.conversation.sound(), found)
        self.transcriber = name
        self._transcribers.add(there[0])
        return there[0]

    def _route(self) -> Route:
        assert self._payer.route is not None, "frames are read when the upstream is there"
        return self._payer.route

    def has_changed(self, spares: Sequence[Item[Sound]]) -> bool:
        """Whether what is held is for another model than the one that transcribes now."""
        name = self.find_transcriber(self._payer.principal)[0].name
        return any(spare.offer.model.name != name for spare in spares)

    def announced(self, session: SessionSettings, frame_bytes: int, *, is_answer: bool) -> None:
        """The upstream says what the session is like. Raises Refused where that cannot be metered."""
        self.conversation.announced(session, frame_bytes, is_answer=is_answer)
        name = session.transcription
        if name is not None and name not in self._transcribers:
            # Switched on by the upstream itself: it must be metered, or end.
            try:
                self._admit_transcriber(name)
            except (InvalidRequest, Failure):
                message = "The upstream transcribes with a model that has no price here."
                raise Refused(message, code="not_metered") from None
            self.conversation.transcription = name
