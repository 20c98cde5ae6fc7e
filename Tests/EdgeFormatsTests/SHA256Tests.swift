// Vectors of FIPS 180-4's examples (NIST CSRC) and the empty message.
import EdgeFormats
import Testing

struct SHA256Tests {
    @Test(arguments: [
        ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        ),
    ])
    func knownVectorsHold(message: String, digest: String) {
        let hash = Array(message.utf8).withUnsafeBytes { SHA256.hash($0) }
        #expect(SHA256.hex(hash) == digest)
    }

    @Test func aMillionLettersHold() {
        let hash = [UInt8](repeating: UInt8(ascii: "a"), count: 1_000_000).withUnsafeBytes { SHA256.hash($0) }
        #expect(SHA256.hex(hash) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
    }

    @Test func everySplitGivesTheSameDigest() {
        let message = (0..<200).map { UInt8($0) }
        let whole = message.withUnsafeBytes { SHA256.hash($0) }
        for split in 0...message.count {
            var hash = SHA256()
            hash.update(Array(message[..<split]))
            hash.update(Array(message[split...]))
            #expect(hash.finalize() == whole, "split at \(split)")
        }
    }
}
