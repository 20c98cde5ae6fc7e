// Resumable state on disk: what makes a run that was cut off indistinguishable from one that was not.
//
//   step-<step>.ckpt   "EDGECKPT", as SealedFile begins | step u64 | flags u64
//                      last loss f64 | best step u64, loss f64, tokens u64 | evaluations without improvement u64
//                      optimizer state kind u64, bytes u64 | parameter count u64
//                      evaluation count u64, each: step u64, loss f64, tokens u64
//                      parameters f32… | optimizer state
//   best-<step>.f32    "EDGEBEST", as SealedFile begins | step u64 | parameter count u64 | parameters f32…
//
// Randomness and data order are functions of seed and step, so neither has state here. The last two checkpoints are kept,
// and the best adapter that each of them names. A best adapter is written when it is measured, before any checkpoint names
// it, and removed after the last checkpoint that names it. A run that is cut off in between goes on from a checkpoint whose
// best is still there, and writes the newer one again with the same bytes.
import EdgeFormats
import EdgeModel
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
    /// The evaluation after `step` is still to be made.
    package var evaluationIsDue = false
    package init() {}
}

package enum CheckpointError: Error, Equatable, CustomStringConvertible {
    case truncated(path: String, bytes: Int)
    case damaged(path: String)
    case wrongVersion(path: String, found: UInt32, known: UInt32)
    case otherRun(path: String)
    case wrongSize(path: String, parameters: Int, expected: Int)
    case otherOptimizer(path: String, bytes: Int, expected: Int)
    case noBest(path: String, best: String)

    package var description: String {
        switch self {
        case .truncated(let path, let bytes): "\(path) ends after \(bytes) bytes"
        case .damaged(let path): "\(path) does not have its checksum"
        case .wrongVersion(let path, let found, let known):
            "\(path) has checkpoint version \(found); this program knows \(known)"
        case .otherRun(let path): "\(path) belongs to another model, data set or request"
        case .wrongSize(let path, let parameters, let expected):
            "\(path) has \(parameters) parameters, the adapter has \(expected)"
        case .otherOptimizer(let path, let bytes, let expected):
            "\(path) has \(bytes) bytes of another optimizer's state, this one's has \(expected)"
        case .noBest(let path, let best): "\(path) names \(best), which is not there"
        }
    }

    /// Whether the file was spoilt on disk: the checkpoint before it may be whole.
    fileprivate var isDamage: Bool {
        switch self {
        case .truncated, .damaged, .noBest: true
        case .wrongVersion, .otherRun, .wrongSize, .otherOptimizer: false
        }
    }
}

package struct CheckpointStore {
    package static let version: UInt32 = 2
    package static let keptFiles = 2
    private static let checkpointMagic = "EDGECKPT", bestMagic = "EDGEBEST"

    package let directory: String
    /// SHA-256 over model, data set and spec: a checkpoint of anything else is refused.
    package let runFingerprint: [UInt8]

    package init(directory: String, runFingerprint: [UInt8]) {
        precondition(runFingerprint.count == SHA256.byteCount)
        self.directory = directory
        self.runFingerprint = runFingerprint
    }

    package func write(_ state: RunState, _ adapters: AdapterSet, _ optimizer: AdamW, _ allocator: RankAllocator? = nil) throws {
        try makeDirectory()
        try SealedFile.write(
            to: path(Self.checkpointName(state.step)), magic: Self.checkpointMagic, version: Self.version,
            runFingerprint: runFingerprint, header: header(state, adapters, optimizer, allocator),
            [Self.bytes(adapters)] + Self.states(optimizer, allocator).map(UnsafeRawBufferPointer.init))
        try removeUnneeded(state)
    }

    /// Copies the newest checkpoint that is whole into the adapter and the optimizer's moments.
    ///
    /// - Returns: its state, nil when there is none; and a note for each that is not whole.
    package func restore(
        into adapters: AdapterSet, _ optimizer: AdamW, _ allocator: RankAllocator? = nil
    ) throws -> (RunState?, notes: [String]) {
        var notes: [String] = []
        for name in try names(prefix: "step-").reversed() {
            do {
                return (try read(path(name), into: adapters, optimizer, allocator), notes)
            } catch let error as CheckpointError {
                // Falling back is for damage. Another run's file, or a newer program's, must not be ignored.
                guard error.isDamage else { throw error }
                notes.append("\(error); passed over")
            }
        }
        return (nil, notes)
    }

    /// Writes the adapter as the best so far, measured after `step` steps.
    package func writeBest(_ adapters: AdapterSet, step: Int) throws {
        try makeDirectory()
        var header = ByteWriter()
        header.put(UInt64(step))
        header.put(UInt64(adapters.parameterCount))
        try SealedFile.write(
            to: path(Self.bestName(step)), magic: Self.bestMagic, version: Self.version, runFingerprint: runFingerprint,
            header: header.bytes, [Self.bytes(adapters)])
    }

    package func restoreBest(into adapters: AdapterSet, step: Int) throws {
        try withBest(adapters, step: step) {
            try $0.copy(into: UnsafeMutableRawBufferPointer(start: adapters.parameters, count: adapters.parameterCount * 4))
        }
    }

    /// Whether the run in a directory has an optimizer with moments, by the newest checkpoint whose header can be read; nil: there is none.
    package static func newestHasMoments(in directory: String) throws -> Bool? {
        for name in try names(in: directory, prefix: "step-").reversed() {
            do {
                return try SealedFile.withUncheckedBytes(
                    directory + "/" + name, magic: checkpointMagic, version: version, runFingerprint: nil
                ) { try readHeader(&$0).optimizerBytes > 0 }
            } catch let error as CheckpointError {
                guard error.isDamage else { throw error }
            }
        }
        return nil
    }

    /// A file of some run's, and what is wrong with it.
    package struct VerifiedFile: Sendable {
        package let name: String
        package let error: CheckpointError?
        /// Whether a run would pass over it, and not stop.
        package var isDamaged: Bool { error?.isDamage ?? false }
    }

    /// Every checkpoint and best adapter in a directory against its checksum, without the run that they are of. The best
    /// adapters come first, then checkpoints from the oldest on.
    package static func verify(directory: String) throws -> [VerifiedFile] {
        let best = try names(in: directory, prefix: "best-").map { name in
            VerifiedFile(name: name, error: try damage(directory + "/" + name, bestMagic) { _ in nil })
        }
        let whole = Set(best.filter { $0.error == nil }.map(\.name))
        let checkpoints = try names(in: directory, prefix: "step-").map { name in
            let path = directory + "/" + name
            let error = try damage(path, checkpointMagic) { file in
                let best = try readHeader(&file).state.bestEvaluation.map { bestName($0.step) }
                return best.flatMap { whole.contains($0) ? nil : CheckpointError.noBest(path: path, best: $0) }
            }
            return VerifiedFile(name: name, error: error)
        }
        return best + checkpoints
    }

    private static func damage(
        _ path: String, _ magic: String, _ body: (inout SealedFile.Reader) throws -> CheckpointError?
    ) throws -> CheckpointError? {
        do {
            return try SealedFile.withBytes(path, magic: magic, version: version, runFingerprint: nil, body)
        } catch let error as CheckpointError {
            return error
        }
    }

    // MARK: Names

    private static func checkpointName(_ step: Int) -> String { "step-\(nineDigits(step)).ckpt" }
    private static func bestName(_ step: Int) -> String { "best-\(nineDigits(step)).f32" }
    /// Names sort by step.
    private static func nineDigits(_ step: Int) -> String {
        String(repeating: "0", count: max(0, 9 - String(step).count)) + "\(step)"
    }
    private func path(_ name: String) -> String { directory + "/" + name }

    private func names(prefix: String) throws -> [String] { try Self.names(in: directory, prefix: prefix) }

    /// Finished files only: what an interrupted write leaves has another ending.
    private static func names(in directory: String, prefix: String) throws -> [String] {
        // Before the first checkpoint there is no directory.
        guard access(directory, F_OK) == 0 || errno != ENOENT else { return [] }
        return try entries(of: directory).filter {
            $0.hasPrefix(prefix) && ($0.hasSuffix(".ckpt") || $0.hasSuffix(".f32"))
        }
    }

    private func makeDirectory() throws {
        guard mkdir(directory, 0o700) == 0 else {
            guard errno == EEXIST else { throw FileError(operation: "mkdir", path: directory, errno: errno) }
            return
        }
        // Without this a power cut could take all checkpoints at once.
        try syncDirectory(parent(of: directory))
    }

    /// Removes all but the last checkpoints, and then the best adapters that neither those nor `state` name.
    private func removeUnneeded(_ state: RunState) throws {
        func remove(_ name: String) throws {
            guard unlink(path(name)) == 0 else { throw FileError(operation: "unlink", path: path(name), errno: errno) }
        }
        let checkpoints = try names(prefix: "step-")
        for old in checkpoints.dropLast(Self.keptFiles) { try remove(old) }
        var named = Set(try checkpoints.suffix(Self.keptFiles).compactMap { try best(namedBy: $0) })
        if let best = state.bestEvaluation { named.insert(best.step) }
        let needed = Set(named.map(Self.bestName))
        for best in try names(prefix: "best-") where !needed.contains(best) { try remove(best) }
    }

    /// From the header alone, whose file has been whole when it was written. One that has been spoilt since names nothing
    /// that matters: it will not be resumed from.
    private func best(namedBy checkpoint: String) throws -> Int? {
        let path = path(checkpoint)
        do {
            return try SealedFile.withUncheckedBytes(
                path, magic: Self.checkpointMagic, version: Self.version, runFingerprint: runFingerprint
            ) { try Self.readHeader(&$0).state.bestEvaluation?.step }
        } catch is CheckpointError {
            return nil
        }
    }

    // MARK: Bytes

    private static func bytes(_ adapters: AdapterSet) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: adapters.parameters, count: adapters.parameterCount * 4)
    }

    /// What a run remembers beside the adapter.
    private static func states(_ optimizer: AdamW, _ allocator: RankAllocator?) -> [UnsafeMutableRawBufferPointer] {
        [optimizer.state] + (allocator.map { [$0.state] } ?? [])
    }

    private struct Header {
        var state = RunState()
        var optimizerKind: UInt64 = 0
        /// Of all that `states` has.
        var optimizerBytes: UInt64 = 0
        var parameterCount: UInt64 = 0
    }

    private func header(_ state: RunState, _ adapters: AdapterSet, _ optimizer: AdamW, _ allocator: RankAllocator?) -> [UInt8] {
        var header = ByteWriter()
        func put(_ evaluation: Evaluation?) {
            header.put(UInt64(evaluation?.step ?? 0))
            header.put((evaluation?.loss ?? 0).bitPattern)
            header.put(UInt64(evaluation?.tokens ?? 0))
        }
        header.put(UInt64(state.step))
        header.put((state.bestEvaluation != nil ? 2 : 0) | (state.endedEarly ? 4 : 0) | (state.evaluationIsDue ? 8 : 0))
        header.put(state.lastLoss.bitPattern)
        put(state.bestEvaluation)
        header.put(UInt64(state.evaluationsWithoutImprovement))
        header.put(optimizer.kind.rawValue)
        header.put(UInt64(Self.states(optimizer, allocator).reduce(0) { $0 + $1.count }))
        header.put(UInt64(adapters.parameterCount))
        header.put(UInt64(state.evaluations.count))
        for evaluation in state.evaluations { put(evaluation) }
        return header.bytes
    }

    private static func readHeader(_ file: inout SealedFile.Reader) throws -> Header {
        func nextEvaluation() throws -> Evaluation {
            Evaluation(
                step: Int(truncatingIfNeeded: try file.next()), loss: Double(bitPattern: try file.next()),
                tokens: Int(truncatingIfNeeded: try file.next()))
        }
        var header = Header()
        header.state.step = Int(truncatingIfNeeded: try file.next())
        let flags = try file.next()
        header.state.lastLoss = Double(bitPattern: try file.next())
        let best = try nextEvaluation()
        header.state.bestEvaluation = flags & 2 != 0 ? best : nil
        header.state.endedEarly = flags & 4 != 0
        header.state.evaluationIsDue = flags & 8 != 0
        header.state.evaluationsWithoutImprovement = Int(truncatingIfNeeded: try file.next())
        header.optimizerKind = try file.next()
        header.optimizerBytes = try file.next()
        header.parameterCount = try file.next()
        let evaluations = try file.next()
        guard evaluations <= UInt64(file.restBytes / 24) else { throw CheckpointError.damaged(path: file.path) }
        for _ in 0..<evaluations { header.state.evaluations.append(try nextEvaluation()) }
        return header
    }

    /// Nothing is copied before all of it, and the best adapter that it names, has been found whole.
    private func read(_ path: String, into adapters: AdapterSet, _ optimizer: AdamW, _ allocator: RankAllocator?) throws -> RunState {
        let states = Self.states(optimizer, allocator), stateBytes = states.reduce(0) { $0 + $1.count }
        return try SealedFile.withBytes(
            path, magic: Self.checkpointMagic, version: Self.version, runFingerprint: runFingerprint
        ) { file in
            let header = try Self.readHeader(&file)
            try Self.checkSize(header.parameterCount, adapters, path)
            guard header.optimizerKind == optimizer.kind.rawValue,
                header.optimizerBytes == UInt64(stateBytes)
            else {
                throw CheckpointError.otherOptimizer(
                    path: path, bytes: Int(truncatingIfNeeded: header.optimizerBytes), expected: stateBytes)
            }
            let parameterBytes = adapters.parameterCount * 4
            guard file.restBytes == parameterBytes + stateBytes else {
                throw CheckpointError.damaged(path: path)
            }
            if let best = header.state.bestEvaluation {
                do {
                    try withBest(adapters, step: best.step) { _ in }
                } catch let error as FileError where error.isNotFound {
                    throw CheckpointError.noBest(path: path, best: Self.bestName(best.step))
                }
            }
            try file.copy(into: UnsafeMutableRawBufferPointer(start: adapters.parameters, count: parameterBytes))
            for state in states { try file.copy(into: state) }
            return header.state
        }
    }

    private func withBest(_ adapters: AdapterSet, step: Int, _ body: (inout SealedFile.Reader) throws -> Void) throws {
        let path = path(Self.bestName(step))
        try SealedFile.withBytes(
            path, magic: Self.bestMagic, version: Self.version, runFingerprint: runFingerprint
        ) { file in
            guard try file.next() == UInt64(step) else { throw CheckpointError.damaged(path: path) }
            try Self.checkSize(try file.next(), adapters, path)
            guard file.restBytes == adapters.parameterCount * 4 else { throw CheckpointError.damaged(path: path) }
            try body(&file)
        }
    }

    private static func checkSize(_ parameterCount: UInt64, _ adapters: AdapterSet, _ path: String) throws {
        guard parameterCount == UInt64(adapters.parameterCount) else {
            throw CheckpointError.wrongSize(
                path: path, parameters: Int(truncatingIfNeeded: parameterCount), expected: adapters.parameterCount)
        }
    }
}
