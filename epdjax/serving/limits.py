"""What one server is willing to accept and to hold: every input from outside is bounded by a number in here."""

import dataclasses
from pathlib import Path

MIB = 2**20
MAY_BE_ZERO = ("max_redirects", "max_waiting_media")


@dataclasses.dataclass(frozen=True)
class ServingLimits:
    """Bounds on requests and on the media in them.

    Attributes:
        max_images_per_request: most pictures in all messages of one request.
        max_image_pixels: most pixels (width x height) of one picture, checked against its header before anything is
            decoded. 64 Mpixel is a large camera's picture, and 192 MiB as RGB.
        max_request_pixels: most pixels of all pictures of one request together.
        max_image_bytes: most bytes of one encoded picture (after base64), or of one download.
        max_videos_per_request, max_audios_per_request: most of them in all messages of one request.
        max_video_bytes, max_audio_bytes: most bytes of one encoded file (after base64), or of one download.
        max_video_seconds, max_audio_seconds: longest video and clip.
        max_video_frames: most frames of a video that a model may want.
        max_body_bytes: most bytes of a request body.
        min_image_side: fewest pixels of a picture's shorter side. Below it no processor makes anything meaningful.
        max_image_aspect_ratio: most a picture's longer side may be, in shorter sides.
        allow_remote_media: fetch http and https URLs. Off unless asked for: clients make the server send requests.
        allowed_media_hosts: with remote media, the hosts that may be asked: exact names, or `*.example.com` for all
            names below one. Empty: every host with a public address. Private addresses are refused in either case.
        allowed_media_ports: with remote media, the ports that may be asked.
        allowed_local_media_path: the folder below which `file:` URLs and paths may be read; None: no local files.
        max_prompt_chars: most characters of all texts of one request, before they are tokenised; None: as many as the
            context could hold if every token were the longest there is.
        max_prompt_parts: most messages and parts of one request together; None: twice the tokens of the context, and no
            more than 16384.
        media_timeout_s: seconds that all downloads of one request may take together.
        decode_timeout_s: seconds that decoding all media of one request may take together.
        max_decoded_bytes: most bytes of memory that decoding media and cutting them into encode units takes at a time,
            over all requests; beyond it requests get 429.
        max_redirects: redirects followed in one download; each target is checked like the first address.
        max_waiting_media: requests whose media may wait to be fetched, or to be decoded; beyond it they get 429.
        max_active_requests: requests the HTTP server works on at a time; beyond it they get 429.
        max_buffered_bytes: most bytes of all request bodies held at a time; beyond it requests get 429.
        max_connections: connections that may be open at a time. Beyond it the one that has waited longest without a
            request is closed for a new one, and where all are at work the new one is.
        header_timeout_s: seconds a client may take to send a request's headers.
        keep_alive_s: seconds a connection may stay open without a request, after one.
        receive_timeout_s: seconds a client may take to send its request's body.
        stall_timeout_s: seconds a client may leave a streamed answer unread before it is given up.
    """

    max_images_per_request: int = 16
    max_image_pixels: int = 64 * MIB
    max_request_pixels: int = 256 * MIB
    max_image_bytes: int = 32 * MIB
    max_videos_per_request: int = 4
    max_audios_per_request: int = 32
    max_video_bytes: int = 48 * MIB
    max_audio_bytes: int = 32 * MIB
    max_video_seconds: float = 3600.0
    max_audio_seconds: float = 600.0
    max_video_frames: int = 256
    max_body_bytes: int = 64 * MIB
    min_image_side: int = 4
    max_image_aspect_ratio: float = 200.0
    allow_remote_media: bool = False
    allowed_media_hosts: tuple[str, ...] = ()
    allowed_media_ports: tuple[int, ...] = (80, 443)
    allowed_local_media_path: Path | None = None
    max_prompt_chars: int | None = None
    max_prompt_parts: int | None = None
    media_timeout_s: float = 20.0
    decode_timeout_s: float = 20.0
    max_decoded_bytes: int = 2048 * MIB
    max_redirects: int = 3
    max_waiting_media: int = 256
    max_active_requests: int = 1024
    max_buffered_bytes: int = 1024 * MIB
    max_connections: int = 4096
    header_timeout_s: float = 10.0
    keep_alive_s: float = 15.0
    receive_timeout_s: float = 120.0
    stall_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Checks the numbers and the folder.

        Raises:
            ValueError: a number that would refuse every request, or a folder that is not there.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name.endswith("_per_request") or field.name in MAY_BE_ZERO else 1
            if (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and not (value >= lowest or 0 < value < 1)
            ):
                raise ValueError(f"{field.name} must be at least {lowest}, not {value}")
        if self.allowed_local_media_path is not None:
            folder = Path(self.allowed_local_media_path)
            if not folder.is_dir():
                raise ValueError(f"allowed_local_media_path {str(folder)!r} is not a folder")
            object.__setattr__(self, "allowed_local_media_path", folder.resolve())
        object.__setattr__(self, "allowed_media_hosts", tuple(host.lower() for host in self.allowed_media_hosts))
