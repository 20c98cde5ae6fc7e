// Routes of blobs: resumable uploads. The offset and the whole length come in headers, the bytes are the body.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore
import NIOCore

extension Daemon {
    func blobStatus(_ call: Call) async throws -> Response {
        try Response(json: blobs.status(try BlobDigest(call.parameters[0])))
    }

    func uploadBlob(_ call: Call) async throws -> Response {
        let digest = try BlobDigest(call.parameters[0])
        func length(_ name: String) throws -> UInt64 {
            guard let value = call.header(name).flatMap({ UInt64($0) }) else {
                throw Problem(.badRequest, "the header \(name) with a number of bytes is wanted")
            }
            return value
        }
        let (offset, whole) = (try length(Header.uploadOffset), try length(Header.uploadLength))
        if let limit = config.now.blobBytesPerUser, call.caller.role < .admin {
            let held = try await store.blobBytes(ofOwner: call.caller.uid)
            guard held + min(whole, WireLimit.blobBytes) <= limit else {
                throw Problem(
                    .tooLarge, "your blobs hold \(held) bytes, the limit of a user is \(limit)",
                    hint: "remove models or data sets that are not needed")
            }
        }
        guard let upload = try await blobs.upload(digest, offset: offset, length: whole) else {
            let status = blobs.status(digest)
            try await own(status, call)
            return try Response(json: status)
        }
        do {
            for try await buffer in call.request.body {
                try buffer.withUnsafeReadableBytes { try upload.write($0) }
            }
        } catch {
            // What arrived stays; the client asks how much that is and goes on.
            await upload.abandon()
            throw error
        }
        let status = try await upload.finish()
        try await own(status, call)
        return try Response(json: status)
    }

    /// Also when it was complete before: a daemon that was killed may have published it without storing whose it is.
    private func own(_ status: BlobStatus, _ call: Call) async throws {
        guard status.complete else { return }
        try await store.addBlob(
            status.digest, bytes: status.receivedBytes, ownerUid: call.caller.uid, at: now().inWholeSeconds)
    }
}
