// Routes of blobs: resumable uploads. The offset and the whole length come in headers, the bytes are the body.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore
import NIOCore

extension Daemon {
    func blobStatus(_ call: Call) async throws -> Response {
        let digest = try BlobDigest(call.parameters[0])
        var status = blobs.status(digest)
        // Published and not stored, for the disk was full just then: the client's next request, without a byte, stores it.
        if status.complete { status.complete = try await store.hasBlob(digest.text) }
        return try Response(json: status)
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
        let allowance = try await allowance(of: call.caller)
        let upload = try await blobs.upload(
            digest, offset: offset, length: whole, by: call.caller.uid, allowance: allowance)
        guard let upload else {
            let status = blobs.status(digest)
            try blobs.syncNames()
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
            throw error as? Problem
                ?? Problem(.badRequest, "the body ended before it was whole; \(upload.received) bytes are here")
        }
        let status = try await upload.finish()
        try await own(status, call)
        return try Response(json: status)
    }

    /// Bytes that the user's uploads may come to beside what is stored; nil: any.
    private func allowance(of caller: Caller) async throws -> UInt64? {
        guard let limit = config.now.blobBytesPerUser, caller.role < .admin else { return nil }
        let held = try await store.blobBytes(ofOwner: caller.uid)
        return limit - min(held, limit)
    }

    /// Throws a problem when the user has no room for what an import will make of his files.
    func requireAllowance(for caller: Caller, importBytes: UInt64) async throws {
        guard let allowance = try await allowance(of: caller) else { return }
        let uploads = await blobs.announcedBytes(by: caller.uid)
        guard uploads + importBytes <= allowance else {
            throw Problem(
                .tooLarge,
                "the import makes \(importBytes) bytes beside the files it is made from; \(allowance - min(uploads, allowance)) "
                    + "are left of your limit",
                hint: "remove models or data sets that are not needed", requiredBytes: importBytes)
        }
    }

    /// Also when it was complete before: a daemon that was killed may have published it without storing whose it is.
    private func own(_ status: BlobStatus, _ call: Call) async throws {
        guard status.complete else { return }
        try await store.addBlob(
            status.digest, bytes: status.receivedBytes, ownerUid: call.caller.uid, at: now().inWholeSeconds)
        await blobs.isStored(try BlobDigest(status.digest))
    }
}
