// One worker process: started with an order, read line by line, and always waited for. What its end means for a job
// is JobQueue's business.
import EdgeWire
import Foundation
import Subprocess
import Synchronization

#if canImport(System)
import System
#else
import SystemPackage
#endif

/// How workers are started: the same executable, `work`, and nothing of this process's environment but what is named.
package struct WorkerLaunch: Sendable {
    package let executable: String
    package let environment: [String: String]

    package init(executable: String, environment: [String: String]) {
        self.executable = executable
        self.environment = environment
    }
}

/// What the queue can ask of a running worker. Asking twice is asking once; asking before it runs is remembered.
package final class WorkerControl: Sendable {
    enum Request: Sendable {
        case signal(WorkSignal)
        case kill
    }
    let requests: AsyncStream<Request>
    private let sink: AsyncStream<Request>.Continuation

    package init() { (requests, sink) = AsyncStream.makeStream(bufferingPolicy: .bufferingOldest(64)) }

    /// - Parameter job: one of those that train together; nil: all.
    package func finish(_ job: String? = nil) { sink.yield(.signal(WorkSignal(.finish, job: job))) }
    package func stop(_ job: String? = nil) { sink.yield(.signal(WorkSignal(.stop, job: job))) }
    package func kill() { sink.yield(.kill) }
}

package enum WorkerLimit {
    /// Longest message line, in bytes; a plan with a hundred line numbers is some 3 kB.
    package static let lineBytes = 1 << 20
    /// Of stderr, per run.
    package static let stderrBytes = 64 << 10
}

/// How a worker ended.
package enum WorkerEnd: Equatable, Sendable {
    /// It said its last message.
    case answered(WorkMessage)
    case signalled(Int32)
    /// It exited without a last message, or said something that is none.
    case exited(Int32, unreadable: String?)

    package static func == (a: Self, b: Self) -> Bool {
        switch (a, b) {
        case (.answered(let a), .answered(let b)): "\(a)" == "\(b)"
        case (.signalled(let a), .signalled(let b)): a == b
        case (.exited(let a, let textA), .exited(let b, let textB)): a == b && textA == textB
        default: false
        }
    }

    /// The problem of an end without an answer; nil when it answered.
    ///
    /// - Parameters:
    ///   - last: what it last said of its memory.
    ///   - group: what the kernel counted in the run's cgroup.
    package func problem(last: JobProgress?, stderr: String, group: RunGroupReport? = nil) -> Problem? {
        let said = stderr.split(separator: "\n").last.map { ": \($0.prefix(300))" } ?? ""
        switch self {
        case .answered: return nil
        case .signalled(9):
            let figures =
                last.map {
                    "; it held \($0.rssBytes >> 20) MiB at step \($0.step), planned \($0.plannedPeakBytes >> 20) MiB, "
                        + "budget \($0.budgetBytes >> 20) MiB"
                } ?? ""
            if let group, group.oomKills > 0 {
                return Problem(
                    .workerKilled, "the worker was killed by its cgroup's memory limit (\(group.figures))\(figures)",
                    hint: "report this: the plan was too small for what ran; a smaller sequence_len needs less",
                    budgetBytes: last?.budgetBytes ?? group.limitBytes)
            }
            return Problem(
                .workerKilled, "the worker was killed by SIGKILL, probably because the machine ran out of memory\(figures)",
                hint: "a smaller memory_budget makes it plan for less", budgetBytes: last?.budgetBytes)
        case .signalled(SIGSYS):
            return Problem(
                .workerCrashed, "the worker made a system call that no worker makes, and was ended for it (SIGSYS)\(said)",
                hint: "do not trust this job's model and data sets: one of them may have taken the worker over")
        case .signalled(let signal): return Problem(.workerCrashed, "the worker ended with signal \(signal)\(said)")
        case .exited(let code, let unreadable):
            let what = unreadable.map { "said something that is no message: \($0.prefix(200))" }
            return Problem(.workerCrashed, "the worker \(what ?? "exited with code \(code) and no answer")\(said)")
        }
    }
}

package struct WorkerRun: Sendable {
    package let end: WorkerEnd
    /// Its first `WorkerLimit.stderrBytes`.
    package let stderr: String
}

package enum WorkerProcess {
    /// A worker can be gone while it is written to. That is an error of the write, and not the end of this process.
    private static let ignoreBrokenPipes: Void = { _ = signal(SIGPIPE, SIG_IGN) }()

    /// Runs one worker to its end. `receive` gets every message that is not the last, in order; a slow one slows the
    /// worker, which is the back-pressure. Cancelling the task kills the worker.
    package static func run(
        _ launch: WorkerLaunch, _ order: WorkOrder, control: WorkerControl = WorkerControl(),
        receive: @escaping @Sendable (WorkMessage) async throws -> Void
    ) async throws -> WorkerRun {
        _ = ignoreBrokenPipes
        var line = try Wire.encoder().encode(order)
        line.append(UInt8(ascii: "\n"))
        let orderLine = [UInt8](line)
        var options = PlatformOptions()
        options.teardownSequence = []
        // Its own group: a terminal's Ctrl-C reaches `serve` alone, which then stops the worker in order.
        options.processGroupID = 0
        let environment = Dictionary(
            uniqueKeysWithValues: launch.environment.compactMap { key, value in
                Environment.Key(rawValue: key).map { ($0, value) }
            })
        let configuration = Configuration(
            executable: .path(FilePath(launch.executable)), arguments: ["work"], environment: .custom(environment),
            platformOptions: options)
        let outcome = try await Subprocess.run(
            configuration, input: .inputWriter, output: .sequence, error: .sequence
        ) { execution in
            try await withThrowingTaskGroup(of: Part.self) { group in
                group.addTask { .output(try await read(execution.standardOutput, receive)) }
                group.addTask { .stderr(try await collect(execution.standardError)) }
                group.addTask {
                    // A worker that is gone already cannot be written to; its end tells more than that error.
                    _ = try? await execution.standardInputWriter.write(orderLine)
                    for await request in control.requests {
                        switch request {
                        case .signal(let signal): _ = try? await execution.standardInputWriter.write("\(signal.line)\n")
                        case .kill: try? execution.send(signal: .kill, toProcessGroup: true)
                        }
                    }
                    return .control
                }
                var output = Output()
                var stderr = ""
                // The two streams end with the process; then nobody listens for requests.
                var open = 2
                while open > 0, let part = try await group.next() {
                    switch part {
                    case .output(let read):
                        output = read
                        open -= 1
                        if read.unreadable != nil { try? execution.send(signal: .kill, toProcessGroup: true) }
                    case .stderr(let text):
                        stderr = text
                        open -= 1
                    case .control: break
                    }
                }
                group.cancelAll()
                return (output, stderr)
            }
        }
        let (output, stderr) = outcome.closureResult
        let end: WorkerEnd =
            if let last = output.last {
                .answered(last)
            } else if let unreadable = output.unreadable {
                .exited(-1, unreadable: unreadable)
            } else {
                switch outcome.terminationStatus {
                case .signaled(let signal): .signalled(signal)
                case .exited(let code): .exited(code, unreadable: nil)
                }
            }
        return WorkerRun(end: end, stderr: stderr)
    }

    private enum Part: Sendable { case output(Output), stderr(String), control }

    private struct Output: Sendable {
        var last: WorkMessage?
        var unreadable: String?
    }

    private static func read(
        _ stream: SubprocessOutputSequence, _ receive: @Sendable (WorkMessage) async throws -> Void
    ) async throws -> Output {
        var output = Output()
        var lines = LineSplitter(limit: WorkerLimit.lineBytes)
        for try await buffer in stream {
            // Nothing follows the last message but the end.
            guard output.last == nil else { continue }
            let pieces: [Data]
            do { pieces = try buffer.withUnsafeBytes { try lines.append($0) } } catch {
                output.unreadable = "a line of more than \(WorkerLimit.lineBytes) bytes"
                return output
            }
            for piece in pieces {
                guard let message = try? Wire.decoder().decode(WorkMessage.self, from: piece) else {
                    output.unreadable = String(decoding: piece.prefix(200), as: UTF8.self)
                    return output
                }
                if message.isLast {
                    output.last = message
                    break
                }
                try await receive(message)
            }
        }
        return output
    }

    private static func collect(_ stream: SubprocessOutputSequence) async throws -> String {
        var bytes: [UInt8] = []
        for try await buffer in stream {
            let room = WorkerLimit.stderrBytes - bytes.count
            if room > 0 { buffer.withUnsafeBytes { bytes.append(contentsOf: $0.prefix(room)) } }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// Bytes to whole lines.
package struct LineSplitter {
    package struct TooLong: Error {}
    private var rest = Data()
    private let limit: Int

    package init(limit: Int) { self.limit = limit }

    package mutating func append(_ bytes: UnsafeRawBufferPointer) throws(TooLong) -> [Data] {
        rest.append(contentsOf: bytes)
        var lines: [Data] = []
        while let end = rest.firstIndex(of: UInt8(ascii: "\n")) {
            if end > rest.startIndex { lines.append(Data(rest[rest.startIndex..<end])) }
            rest = Data(rest[(end + 1)...])
        }
        guard rest.count <= limit else { throw TooLong() }
        return lines
    }
}
