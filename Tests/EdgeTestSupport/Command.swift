// A program run to its end, for tests of what it says.
import Foundation

package enum Command {
    /// Its exit code, and what it printed on both outputs.
    package static func run(
        _ executable: String, _ arguments: [String], environment: [String: String]? = nil
    ) throws -> (code: Int32, text: String) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: executable)
        process.arguments = arguments
        if let environment { process.environment = environment }
        let output = Pipe()
        process.standardOutput = output
        process.standardError = output
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return (process.terminationStatus, text)
    }
}
