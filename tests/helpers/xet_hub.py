"""Xet for the loopback Hub: the real hf_xet client up- and downloads, with a local folder as its store.

hf_xet 1.8 takes `local://FOLDER` as a CAS address (its own test store, undocumented: pin hf-xet where this is
used). The Hub learns which xet file holds which sha256 from the uploaded shards; so does this, by reading them.
Use: HubServer(root, tokens, handler=XetHandler), and do not set HF_HUB_DISABLE_XET.
"""

import struct
import time
from pathlib import Path

from hub_http import ID, KIND, REV, route
from hub_server import Handler


def hash_hex(raw: bytes) -> str:  # xet prints a hash as four little-endian 64-bit words
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def shard_files(cas: Path) -> dict[str, tuple[str, int]]:
    """sha256 -> (xet hash, size) of every file that the store's shards name."""
    found = {}
    for shard in cas.glob("**/shards/*.mdb"):
        data, at = shard.read_bytes(), 48  # after the header come 48-byte records, up to an all-ones one
        while data[at : at + 32] != b"\xff" * 32:
            xet, (flags, count) = hash_hex(data[at : at + 32]), struct.unpack_from("<II", data, at + 32)
            size = sum(struct.unpack_from("<I", data, at + 48 * (i + 1) + 36)[0] for i in range(count))
            at += 48 * (1 + count * (2 if flags >> 31 & 1 else 1))
            if flags >> 30 & 1:
                found[hash_hex(data[at : at + 32])] = (xet, size)
                at += 48
    return found


class XetHandler(Handler):
    transfer = "xet"  # huggingface_hub 1 lets the server choose

    @property
    def cas(self) -> Path:
        return self.server.root.absolute() / "cas"

    @route("GET", f"/api/{KIND}/{ID}/xet-(?P<mode>read|write)-token/{REV}")
    def xet_token(self, body, kind, ns, name, mode, rev):
        self.repo(kind, ns, name, write=mode == "write")
        url, expires = f"local://{self.cas}", int(time.time()) + 3600
        self.send_json(
            {"casUrl": url, "accessToken": "local", "exp": expires},
            200,
            {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "local", "X-Xet-Token-Expiration": str(expires)},
        )

    def stored(self, sha256):
        """Also true of a file in the xet store, once its bytes are laid beside the plain LFS objects."""
        target = self.server.root / "lfs" / sha256
        if not target.is_file() and (known := shard_files(self.cas).get(sha256)):
            import hf_xet

            target.parent.mkdir(exist_ok=True)
            with hf_xet.XetSession().new_file_download_group(
                endpoint=f"local://{self.cas}",
                token="local",
                token_expiry_unix_secs=int(time.time()) + 3600,
                token_refresh_url=self.server.url,
                token_refresh_headers={},
                custom_headers={},
                progress_callback=None,
            ) as group:
                group.start_download_file(hf_xet.XetFileInfo(*known), str(target))
        return target.is_file()

    def lfs_headers(self, sha256, kind, repo, commit):
        known = shard_files(self.cas).get(sha256)
        return (
            {
                "X-Xet-Hash": known[0],
                "X-Xet-Refresh-Route": f"{self.server.url}/api/{kind}/{repo}/xet-read-token/{commit}",
            }
            if known
            else {}
        )
