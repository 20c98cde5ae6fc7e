// Tests run on Swift's pool, which has a thread a processor: two that block there for minutes stop all others.
import Foundation

/// What `body` returns or throws, computed on a thread that is no test's.
package func onOwnThread<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        Thread.detachNewThread { continuation.resume(with: Result(catching: body)) }
    }
}
