"""Prints test vectors of XEdDSA by libxeddsa, an implementation in C that shares no code with this repository.

    python3 -m venv venv && venv/bin/pip install XEdDSA==1.2.0
    venv/bin/python keyring/tests/proof/vectors.py > keyring/tests/proof/vectors.json
"""

import hashlib
import json

import xeddsa


def draw(purpose, number):
    return hashlib.sha512(f"{purpose}/{number}".encode()).digest()


def vector(number, length):
    private = bytearray(draw("private", number)[:32])
    private[0] &= 0xF8
    private[31] = private[31] & 0x7F | 0x40
    private = bytes(private)
    message = draw("message", number)[:length]
    noise = draw("nonce", number)
    proof = xeddsa.ed25519_priv_sign(xeddsa.priv_force_sign(private, False), message, noise)
    return {
        "private": private.hex(),
        "public": xeddsa.priv_to_curve25519_pub(private).hex(),
        "message": message.hex(),
        "noise": noise.hex(),
        "proof": proof.hex(),
    }


vectors = [vector(number, length) for number, length in enumerate([0, 1, 33, 64, 7, 20])]
print("[\n" + ",\n".join("  " + json.dumps(one) for one in vectors) + "\n]")
