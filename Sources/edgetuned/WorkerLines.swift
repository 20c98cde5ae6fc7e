// A worker's words as lines of JSON, as they come: what generation, merging and composing answer with.
import EdgeJobs
import EdgeWire
import Foundation
import HummingbirdCore
import NIOCore

extension Daemon {
    /// Starts when the body is asked for; whoever goes away takes the worker with him.
    ///
    /// - Parameters:
    ///   - gate: passed now, and free again when the worker is gone.
    ///   - event: the line for a message; nil: none.
    ///   - problem: the last line of an order that failed.
    ///   - begun: called before there is a worker.
    ///   - answered: the last line of an order whose worker ends with an answer; other workers say their last line themselves.
    ///   - ended: called when the worker is gone, with what `answered` has given.
    func lines<Event: Encodable & Sendable>(
        of order: WorkOrder, through gate: Gate, event: @escaping @Sendable (WorkMessage) -> Event?,
        problem: @escaping @Sendable (Problem) -> Event, begun: @escaping @Sendable () throws -> Void = {},
        answered: @escaping @Sendable (WorkMessage) async throws -> Event? = { _ in nil },
        ended: @escaping @Sendable (_ answer: Event?) -> Void = { _ in }
    ) throws -> Response {
        let pass = try gate.pass()
        let (launch, logger) = (worker, logger)
        return Response(
            status: .ok, headers: [.contentType: Header.jsonLines],
            body: ResponseBody { writer in
                let (events, sink) = AsyncStream.makeStream(of: Event.self)
                let work = Task {
                    var answer: Event?
                    defer {
                        ended(answer)
                        pass.leave()
                        sink.finish()
                    }
                    do {
                        try begun()
                        let run = try await WorkerProcess.run(launch, order) { message in
                            if let event = event(message) { sink.yield(event) }
                        }
                        if case .answered(.failure(let failure)) = run.end {
                            sink.yield(problem(failure))
                        } else if case .answered(let message) = run.end {
                            answer = try await answered(message)
                            if let answer { sink.yield(answer) }
                        } else if case .exited(0, nil) = run.end {
                            // It has said its last line.
                        } else if let failure = run.end.problem(last: nil, stderr: run.stderr) {
                            sink.yield(problem(failure))
                        }
                    } catch {
                        logger.error("\(error)")
                        sink.yield(problem(Problem(apiError: error)))
                    }
                }
                defer { work.cancel() }
                for await event in events {
                    var line = ByteBuffer(bytes: try Wire.encoder().encode(event))
                    line.writeString("\n")
                    try await writer.write(line)
                }
                try await writer.finish(nil)
            })
    }
}
