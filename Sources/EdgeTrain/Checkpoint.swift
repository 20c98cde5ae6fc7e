// Resumable state on disk: what makes a run that was cut off indistinguishable from one that was not.
//
//   "EDGECKPT" | version u32 | reserved u32 | run fingerprint 32 bytes | step u64 | flags u64
//   last loss f64 | best step u64, loss f64, tokens u64 | evaluations without improvement u64
//   evaluation count u64, each: step u64, loss f64, tokens u64
//   parameter count u64 | parameters f32… | moment1 f32… | moment2 f32… | [best f32…]
//   SHA-256 of everything before, 32 bytes
//
// Little-endian. Randomness and data order are functions of seed and step, so neither has state here. A file under its
// final name is complete (AtomicFile); the last two are kept.
import EdgeFormats
import EdgeTensor
import Glibc

/// What a run knows besides its tensors.
package struct RunState: Equatable, Sendable {
    /// Steps done.
    package var step = 0
    package var lastLoss = 0.0
    package var evaluations: [Evaluation] = []
    package var bestEvaluation: Evaluation?
    package var evaluationsWithoutImprovement = 0
    package var endedEarly = false
    package init() {}
}

package enum CheckpointError: Error, Equatable, CustomStringConvertible {
    case truncated(path: String, bytes: Int)
    case damaged(path: String)
    case wrongVersion(path: String, found: UInt32, known: UInt32)
    case otherRun(path: String)
    case wrongSize(path: String, parameters: Int, expected: Int)

    package var description: String {
        switch self {
        case .truncated(let path, let bytes): "\(path) ends after \(bytes) bytes"
        case .damaged(let path): "\(path) does not have its checksum"
        case .wrongVersion(let path, let found, let known):
            "\(path) has checkpoint version \(found); this program knows \(known)"
        case .otherRun(let path): "\(path) belongs to another model, data set or request"
        case .wrongSize(let path, let parameters, let expected):
            "\(path) has \(parameters) parameters, the adapter has \(expected)"
        }
    }
}

package struct CheckpointStore {
    package static let version: UInt32 = 1
    package static let keptFiles = 2
    private static let magic = Array("EDGECKPT".utf8)
    private static let digestBytes = 32

    package let directory: String
    /// SHA-256 over model, data set and spec: a checkpoint of anything else is refused.
    package let runFingerprint: [UInt8]

    package init(directory: String, runFingerprint: [UInt8]) {
        precondition(runFingerprint.count == Self.digestBytes)
        self.directory = directory
        self.runFingerprint = runFingerprint
    }

    package struct Loaded {
        package let state: RunState
        package let parameters: [Float], moment1: [Float], moment2: [Float]
        package let best: [Float]?
    }

    package func write(
        _ state: RunState, parameters: UnsafePointer<Float>, moment1: UnsafePointer<Float>,
        moment2: UnsafePointer<Float>, best: UnsafePointer<Float>?, parameterCount: Int
    ) throws {
        guard mkdir(directory, 0o700) == 0 || errno == EEXIST else {
            throw FileError(operation: "mkdir", path: directory, errno: errno)
        }
        let name = "step-" + String(repeating: "0", count: max(0, 9 - String(state.step).count)) + "\(state.step).ckpt"
        try AtomicFile.write(to: directory + "/" + name) { file in
            var digest = SHA256()
            func put(_ bytes: UnsafeRawBufferPointer) throws {
                digest.update(bytes)
                try file.write(bytes)
            }
            try header(state, hasBest: best != nil, parameterCount: parameterCount).withUnsafeBytes(put)
            for block in [parameters, moment1, moment2] + (best.map { [$0] } ?? []) {
                try put(UnsafeRawBufferPointer(start: block, count: parameterCount * 4))
            }
            try file.write(digest.finalize())
        }
        for old in try checkpointNames().dropLast(Self.keptFiles) {
            let path = directory + "/" + old
            guard unlink(path) == 0 else { throw FileError(operation: "unlink", path: path, errno: errno) }
        }
    }

    /// The newest checkpoint that is whole, with a note for each newer one that is not; nil when there is none.
    package func newest(parameterCount: Int, keepsBest: Bool) throws -> (Loaded, notes: [String])? {
        var notes: [String] = []
        for name in try checkpointNames().reversed() {
            do {
                return (try read(directory + "/" + name, parameterCount: parameterCount, keepsBest: keepsBest), notes)
            } catch let error as CheckpointError {
                // Falling back is for damage. Another run's file, or a newer program's, must not be ignored.
                switch error {
                case .truncated, .damaged: notes.append("\(error); using the checkpoint before it")
                case .wrongVersion, .otherRun, .wrongSize: throw error
                }
            }
        }
        return nil
    }

    private func checkpointNames() throws -> [String] {
        // Before the first checkpoint there is no directory.
        guard access(directory, F_OK) == 0 || errno != ENOENT else { return [] }
        return try entries(of: directory).filter { $0.hasPrefix("step-") && $0.hasSuffix(".ckpt") }
    }

    private func header(_ state: RunState, hasBest: Bool, parameterCount: Int) -> [UInt8] {
        var bytes = Self.magic
        func put(_ value: UInt64) { withUnsafeBytes(of: value.littleEndian) { bytes += $0 } }
        func put(_ evaluation: Evaluation?) {
            put(UInt64(evaluation?.step ?? 0))
            put((evaluation?.loss ?? 0).bitPattern)
            put(UInt64(evaluation?.tokens ?? 0))
        }
        put(UInt64(Self.version))  // version in the low half, reserved zero in the high half
        bytes += runFingerprint
        put(UInt64(state.step))
        put((hasBest ? 1 : 0) | (state.bestEvaluation != nil ? 2 : 0) | (state.endedEarly ? 4 : 0))
        put(state.lastLoss.bitPattern)
        put(state.bestEvaluation)
        put(UInt64(state.evaluationsWithoutImprovement))
        put(UInt64(state.evaluations.count))
        for evaluation in state.evaluations { put(evaluation) }
        put(UInt64(parameterCount))
        return bytes
    }

    private func read(_ path: String, parameterCount: Int, keepsBest: Bool) throws -> Loaded {
        try ByteRegion.map(path: path).withBytes { bytes in
            try decode(bytes, path: path, parameterCount: parameterCount, keepsBest: keepsBest)
        }
    }

    private func decode(
        _ bytes: UnsafeRawBufferPointer, path: String, parameterCount: Int, keepsBest: Bool
    ) throws -> Loaded {
        let body = bytes.count - Self.digestBytes
        guard body > Self.magic.count + 8 + Self.digestBytes else {
            throw CheckpointError.truncated(path: path, bytes: bytes.count)
        }
        var digest = SHA256()
        digest.update(UnsafeRawBufferPointer(rebasing: bytes[..<body]))
        guard digest.finalize() == Array(bytes[body...]), bytes.starts(with: Self.magic) else {
            throw CheckpointError.damaged(path: path)
        }
        var cursor = Self.magic.count
        func next() throws -> UInt64 {
            guard cursor + 8 <= body else { throw CheckpointError.truncated(path: path, bytes: bytes.count) }
            defer { cursor += 8 }
            return UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: cursor, as: UInt64.self))
        }
        func nextEvaluation() throws -> Evaluation {
            Evaluation(
                step: Int(truncatingIfNeeded: try next()), loss: Double(bitPattern: try next()),
                tokens: Int(truncatingIfNeeded: try next()))
        }
        let version = UInt32(truncatingIfNeeded: try next())
        guard version == Self.version else {
            throw CheckpointError.wrongVersion(path: path, found: version, known: Self.version)
        }
        guard Array(bytes[cursor..<cursor + Self.digestBytes]) == runFingerprint else {
            throw CheckpointError.otherRun(path: path)
        }
        cursor += Self.digestBytes
        var state = RunState()
        state.step = Int(truncatingIfNeeded: try next())
        let flags = try next()
        state.lastLoss = Double(bitPattern: try next())
        let best = try nextEvaluation()
        state.bestEvaluation = flags & 2 != 0 ? best : nil
        state.endedEarly = flags & 4 != 0
        state.evaluationsWithoutImprovement = Int(truncatingIfNeeded: try next())
        let evaluations = try next()
        guard evaluations <= UInt64(body / 24) else { throw CheckpointError.damaged(path: path) }
        for _ in 0..<evaluations { state.evaluations.append(try nextEvaluation()) }
        let count = try next()
        let hasBest = flags & 1 != 0
        guard count == UInt64(parameterCount), hasBest == keepsBest,
            body - cursor == parameterCount * 4 * (hasBest ? 4 : 3)
        else { throw CheckpointError.wrongSize(path: path, parameters: Int(truncatingIfNeeded: count), expected: parameterCount) }
        func nextBlock() -> [Float] {
            defer { cursor += parameterCount * 4 }
            return [Float](unsafeUninitializedCapacity: parameterCount) { floats, initialized in
                UnsafeMutableRawBufferPointer(floats).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: bytes[cursor..<cursor + parameterCount * 4]))
                initialized = parameterCount
            }
        }
        return Loaded(
            state: state, parameters: nextBlock(), moment1: nextBlock(), moment2: nextBlock(),
            best: hasBest ? nextBlock() : nil)
    }
}
