import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

/// SHA-256 of "abc": FIPS 180-4, appendix B.1.
private let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

private func send(_ text: String, to blobs: BlobStore, at offset: UInt64, of length: UInt64, as digest: String = abc)
    async throws -> BlobStatus?
{
    guard let upload = try await blobs.upload(try BlobDigest(digest), offset: offset, length: length, by: 1) else { return nil }
    do { try Array(text.utf8).withUnsafeBytes { try upload.write($0) } } catch {
        await upload.abandon()
        throw error
    }
    return try await upload.finish()
}

@Suite struct BlobStoreTests {
    @Test func aBlobInTwoPiecesIsPublishedUnderItsDigest() async throws {
        let directory = try TemporaryDirectory()
        let blobs = try BlobStore(directory: directory.path)
        let digest = try BlobDigest(abc)
        #expect(try await send("a", to: blobs, at: 0, of: 3) == BlobStatus(digest: abc, receivedBytes: 1, complete: false))
        #expect(!FileManager.default.fileExists(atPath: blobs.path(digest)))
        #expect(try await send("bc", to: blobs, at: 1, of: 3) == BlobStatus(digest: abc, receivedBytes: 3, complete: true))
        #expect(try String(contentsOfFile: blobs.path(digest), encoding: .utf8) == "abc")
        #expect(try await send("x", to: blobs, at: 0, of: 3) == nil)
    }

    @Test func aWrongOffsetIsAConflictThatNamesTheRightOne() async throws {
        let directory = try TemporaryDirectory()
        let blobs = try BlobStore(directory: directory.path)
        _ = try await send("a", to: blobs, at: 0, of: 3)
        await #expect { try await send("c", to: blobs, at: 2, of: 3) } throws: {
            ($0 as? Problem)?.kind == .conflict && ($0 as? Problem)?.hint == "send the next bytes from 1"
        }
    }

    @Test func otherContentThanTheDigestIsThrownAway() async throws {
        let directory = try TemporaryDirectory()
        let blobs = try BlobStore(directory: directory.path)
        await #expect { try await send("abd", to: blobs, at: 0, of: 3) } throws: {
            ($0 as? Problem)?.kind == .digestMismatch
        }
        #expect(blobs.status(try BlobDigest(abc)).receivedBytes == 0)
        #expect(try await send("abc", to: blobs, at: 0, of: 3)?.complete == true)
    }

    @Test func moreBytesThanAnnouncedAreRefused() async throws {
        let directory = try TemporaryDirectory()
        let blobs = try BlobStore(directory: directory.path)
        await #expect { try await send("abcd", to: blobs, at: 0, of: 3) } throws: { ($0 as? Problem)?.kind == .tooLarge }
    }

    @Test func twoUploadsOfOneBlobAtOnceAreRefused() async throws {
        let directory = try TemporaryDirectory()
        let blobs = try BlobStore(directory: directory.path)
        let first = try await blobs.upload(try BlobDigest(abc), offset: 0, length: 3, by: 1)
        await #expect { try await send("abc", to: blobs, at: 0, of: 3) } throws: { ($0 as? Problem)?.kind == .conflict }
        await first?.abandon()
        #expect(try await send("abc", to: blobs, at: 0, of: 3)?.complete == true)
    }

    @Test(arguments: ["", "sha256:", "sha256:../../etc/passwd", abc.uppercased(), abc + "0", "md5:" + abc])
    func whatIsNoDigestNamesNoFile(text: String) {
        #expect(throws: Problem.self) { try BlobDigest(text) }
    }
}
