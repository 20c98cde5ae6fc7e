// A large file from the hub into a blob of the daemon, without a copy on this machine's disk: the hub says its SHA-256
// beforehand, so it can be uploaded under it as it comes. How far it got is what the daemon holds: a second run asks it and
// goes on there, on this machine or another.
import EdgeWire
import Foundation
import NIOCore

struct HubTransfer {
    let hub: HubConnection
    let repository: HubRepository
    let client: DaemonClient

    /// Returns once the daemon has all of the file and has verified it.
    func send(_ file: HubFile, as digest: String) async throws {
        let line = StatusLine()
        defer { line.clear() }
        if !line.isDrawn { Terminal.complain(TerminalFilter.line("\(file.name): \(Amount.bytes(file.bytes))")) }
        var patience = HubPatience()
        var reached: UInt64 = 0
        while true {
            let held = try await client.repeated { () async throws(DaemonError) in
                try await BlobUpload.status(of: digest, on: client)
            }
            if held.complete { return }
            guard held.receivedBytes <= file.bytes else {
                throw CommandFailure(
                    .failure, "the daemon has \(held.receivedBytes) bytes of \(file.name), the hub's list says \(file.bytes)")
            }
            if held.receivedBytes > reached { patience.gotOn() }
            reached = held.receivedBytes
            do {
                try await stream(file, as: digest, from: held.receivedBytes, line)
            } catch {
                guard let passing = try Self.passing(error, file) else { throw error }
                try await patience.wait(after: passing, during: file.name) { line.draw(TerminalFilter.line($0)) }
            }
        }
    }

    /// What another try may bring past; nil: nothing will.
    private static func passing(_ error: any Error, _ file: HubFile) throws -> HubError? {
        switch error {
        case let error as HubError: return error
        case let error as DaemonError where error.isConnectionLoss: return .lost("the connection to edgetuned was lost")
        case let error as DaemonError where error.isOffsetConflict: return .lost("somebody else uploads \(file.name), too")
        case DaemonError.problem(let problem) where problem.kind == .digestMismatch:
            throw CommandFailure(
                .failure, "\(file.name) is not what the hub's list says: \(problem.detail)",
                hint: "what came was thrown away; the next run starts it anew")
        default: return nil
        }
    }

    private func stream(_ file: HubFile, as digest: String, from offset: UInt64, _ line: StatusLine) async throws {
        var piece = BlobPiece(digest: digest, position: offset, whole: file.bytes, client: client)
        // All there, and not verified: there is nothing to fetch.
        guard offset < file.bytes else { return try await piece.send() }
        let url = try repository.url(of: file, at: hub.endpoint)
        let answer = try await hub.open(url, from: offset)
        var skipped = try Self.excess(answer, file, offset)
        do {
            for try await part in answer.body {
                var part = part
                let dropped = min(skipped, UInt64(part.readableBytes))
                part.moveReaderIndex(forwardBy: Int(dropped))
                skipped -= dropped
                try await piece.append(part)
                line.draw(
                    ProgressLine.transfer("pull", file.name, done: piece.end, of: file.bytes, width: line.width))
            }
        } catch {
            let reason = HubConnection.lost(error, url)
            // What came before the cut counts.
            if reason is HubError { try await piece.send() }
            throw reason
        }
        try await piece.send()
        guard piece.end == file.bytes else {
            throw HubError.lost("\(url.host ?? "") ended \(file.name) at byte \(piece.end) of \(file.bytes)")
        }
    }

    /// Bytes of the answer before `offset`. Throws when the answer is not of the file that the list has.
    private static func excess(_ answer: HubAnswer, _ file: HubFile, _ offset: UInt64) throws -> UInt64 {
        func require(_ found: UInt64?, isWhole whole: UInt64) throws {
            guard let found, found != whole else { return }
            throw CommandFailure(.failure, "\(file.name) has \(found) bytes, the hub's list says \(whole)")
        }
        if let digest = answer.linkedDigest, let listed = file.sha256, digest != listed {
            throw CommandFailure(.failure, "\(file.name) has the digest \(digest), the hub's list says \(listed)")
        }
        switch answer.extent {
        case .whole(let length):
            try require(length, isWhole: file.bytes)
            return offset
        case .rest(let start, let total):
            try require(total, isWhole: file.bytes)
            guard start == offset else {
                throw CommandFailure(.failure, "\(file.name) was asked for from byte \(offset) and came from \(start)")
            }
            return 0
        }
    }
}

/// Bytes on their way into a blob, gathered until they are worth a call.
private struct BlobPiece {
    let digest: String
    /// Bytes that the daemon has.
    private(set) var position: UInt64
    let whole: UInt64
    let client: DaemonClient
    private var gathered = ByteBuffer()

    init(digest: String, position: UInt64, whole: UInt64, client: DaemonClient) {
        self.digest = digest
        self.position = position
        self.whole = whole
        self.client = client
    }

    var end: UInt64 { position + UInt64(gathered.readableBytes) }

    mutating func append(_ part: ByteBuffer) async throws {
        guard end + UInt64(part.readableBytes) <= whole else {
            throw CommandFailure(.failure, "more comes than the \(whole) bytes that the hub's list says")
        }
        gathered.writeImmutableBuffer(part)
        if gathered.readableBytes >= BlobUpload.pieceBytes { try await send() }
    }

    /// Also nothing, at the end: then the daemon verifies what it has.
    mutating func send() async throws {
        guard gathered.readableBytes > 0 || position == whole else { return }
        let status = try await BlobUpload.patch(digest, gathered, at: position, of: whole, on: client)
        position = status.receivedBytes
        gathered.clear()
    }
}
