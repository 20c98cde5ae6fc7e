// Blobs against the digests that they are named by, and against what the store's records need.
import EdgeJobs
import EdgeWire
import Foundation

extension StateCheck {
    /// Hashes every blob.
    ///
    /// - Returns: digests of those that are whole.
    mutating func checkBlobs() throws -> Set<String> {
        var whole: Set<String> = []
        for name in try Self.names(in: places.blobs) {
            let path = "\(places.blobs)/\(name)"
            if name.hasSuffix(".part") {
                let received = Daemon.regularFileBytes(path) ?? 0
                report.add(
                    .note, "upload \(name.dropLast(".part".count))",
                    "\(received) bytes have arrived; it can go on for \(Int(ModelImports.keptDays)) days")
                continue
            }
            guard name.hasPrefix("sha256-"), let digest = try? BlobDigest("sha256:" + name.dropFirst("sha256-".count)) else {
                let reason = "is none of the store's files"
                report.add(.leftover, "blobs/\(name)", reason, done: try putAside(path, because: reason))
                continue
            }
            guard let bytes = Daemon.regularFileBytes(path) else {
                let reason = "is no regular file"
                report.add(.damage, "blob \(digest.text)", reason, done: try putAside(path, because: reason))
                continue
            }
            report.checked.blobs += 1
            report.checked.blobBytes += bytes
            let reason: String
            do {
                let found = try BlobStore.sha256(ofFile: path)
                if found == digest.hex {
                    whole.insert(digest.text)
                    try checkRecord(digest, bytes: bytes)
                    continue
                }
                reason = "its \(bytes) bytes have the digest sha256:\(found)"
            } catch { reason = "cannot be read: \(error)" }
            report.add(.damage, "blob \(digest.text)", reason, done: try putAside(path, because: reason))
        }
        return whole
    }

    private mutating func checkRecord(_ digest: BlobDigest, bytes: UInt64) throws {
        guard let store, contents.blobs[digest.text] == nil else { return }
        guard contents.named.contains(digest.text) || storeWasRebuilt else {
            report.add(.leftover, "blob \(digest.text)", "nothing names it: the next start removes it")
            return
        }
        let modelOwner = contents.models.first { $0.blob == digest.text }?.ownerUid
        let datasetOwner = contents.datasets.first { $0.blob == digest.text }?.ownerUid
        let owner: UInt32 = modelOwner ?? datasetOwner ?? getuid()
        var done: String?
        if mode == .repair {
            try store.addBlob(digest.text, bytes: bytes, ownerUid: owner, at: now)
            done = "recorded again, as of uid \(owner)"
        }
        report.add(.damage, "blob \(digest.text)", "it is whole, and the store has no record of it", done: done)
    }

    /// What models, data sets, imports and unfinished jobs need is there.
    mutating func checkUses(_ whole: Set<String>) throws {
        guard let store else { return }
        for model in contents.models where !whole.contains(model.blob) {
            try miss("model \"\(model.name)\"", model.blob, as: .model(model.name), store, hint: "edgetune models add")
        }
        for set in contents.datasets where !whole.contains(set.blob) {
            try miss("data set \"\(set.name)\"", set.blob, as: .dataset(set.name), store, hint: "edgetune datasets add")
        }
        for use in contents.uses where !whole.contains(use.blob) {
            report.add(.damage, use.user, "needs \(use.blob), which is not there whole; upload it again, or give it up")
        }
        for (digest, _) in contents.blobs where !whole.contains(digest) {
            var done: String?
            if mode == .repair {
                try store.forgetBlob(digest)
                done = "the record is removed"
            }
            report.add(.leftover, "blob \(digest)", "is recorded, and not there whole", done: done)
        }
    }

    /// A record without its file would stand in the way of the same thing brought in again.
    private mutating func miss(
        _ what: String, _ blob: String, as record: StoreInspection.NamedRecord, _ store: StoreInspection, hint: String
    ) throws {
        let reason = "\(what) needs \(blob), which is not there whole"
        var done: String?
        if mode == .repair {
            try quarantine.take(rows: try store.takeOut(record), of: "records", because: reason)
            done = "its record is taken out and written down; bring it in again: \(hint)"
        }
        report.add(.damage, what, "needs \(blob), which is not there whole", done: done)
    }
}
