// Ctrl-C where the work goes on elsewhere, can be gone on with, or has left something: the program says so and ends with the code of
// that.
import Dispatch
import Foundation

/// From `init` until `cancel`.
final class InterruptExit {
    private let source: any DispatchSourceSignal

    /// - Parameter tidy: called first.
    init(saying message: String, tidy: @escaping @Sendable () -> Void = {}) {
        signal(SIGINT, SIG_IGN)
        source = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global())
        source.setEventHandler {
            tidy()
            Terminal.complain("\n" + TerminalFilter.text(message))
            exit(ExitCode.detached.rawValue)
        }
        source.resume()
    }

    func cancel() {
        source.cancel()
        signal(SIGINT, SIG_DFL)
    }
}
