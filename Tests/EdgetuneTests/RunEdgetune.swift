// The real binary, which SwiftPM builds beside the test bundle, as a child with pipes or with a terminal.
import Foundation
import Glibc

struct Outcome {
    var code: Int32
    var out: String
    var err: String
}

enum Edgetune {
    static let binary: String = {
        let names = [CommandLine.arguments[0]] + CommandLine.arguments
        let bundle =
            names.first { $0.contains(".build/") }
            ?? (try? FileManager.default.destinationOfSymbolicLink(
                atPath: "/proc/self/exe")) ?? ""
        return URL(fileURLWithPath: bundle).deletingLastPathComponent().appendingPathComponent("edgetune").path
    }()

    static func run(
        _ arguments: [String], daemon: ScriptedDaemon? = nil, socket: String? = nil,
        environment: [String: String] = [:], input: String = "", prefix: [String] = [],
        interruptAfter seconds: Double? = nil
    ) throws -> Outcome {
        // The daemon goes when nobody holds it.
        defer { withExtendedLifetime(daemon) {} }
        let directory = temporaryDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let (out, err, stdin) = (directory + "/out", directory + "/err", directory + "/in")
        for path in [out, err] { try Data().write(to: URL(fileURLWithPath: path)) }
        try Data(input.utf8).write(to: URL(fileURLWithPath: stdin))
        let process = child(
            arguments, socket: socket ?? daemon?.path, environment: environment, prefix: prefix)
        process.standardInput = FileHandle(forReadingAtPath: stdin)
        process.standardOutput = FileHandle(forWritingAtPath: out)
        process.standardError = FileHandle(forWritingAtPath: err)
        try process.run()
        if let seconds {
            Thread.sleep(forTimeInterval: seconds)
            process.interrupt()
        }
        process.waitUntilExit()
        return Outcome(
            code: process.terminationStatus, out: try String(contentsOfFile: out, encoding: .utf8),
            err: try String(contentsOfFile: err, encoding: .utf8))
    }

    /// Both outputs on one terminal of `columns`.
    static func run(
        onTerminalOf columns: UInt16, _ arguments: [String], daemon: ScriptedDaemon,
        environment: [String: String] = [:]
    ) throws -> Outcome {
        defer { withExtendedLifetime(daemon) {} }
        // Glibc's module has no posix_openpt: TIOCSPTLCK and TIOCGPTN, asm-generic/ioctls.h.
        let master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)
        var (unlocked, number): (Int32, Int32) = (0, 0)
        _ = ioctl(master, 0x4004_5431, &unlocked)
        _ = ioctl(master, 0x8004_5430, &number)
        let slave = open("/dev/pts/\(number)", O_RDWR | O_NOCTTY | O_CLOEXEC)
        var size = winsize(ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0)
        _ = ioctl(slave, UInt(TIOCSWINSZ), &size)
        let process = child(arguments, socket: daemon.path, environment: environment, prefix: [])
        let terminal = FileHandle(fileDescriptor: slave, closeOnDealloc: false)
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = terminal
        process.standardError = terminal
        try process.run()
        close(slave)
        var data: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = read(master, &chunk, chunk.count)
            guard count > 0 else { break }
            data += chunk[..<count]
        }
        close(master)
        process.waitUntilExit()
        return Outcome(code: process.terminationStatus, out: String(decoding: data, as: UTF8.self), err: "")
    }

    private static func child(
        _ arguments: [String], socket: String?, environment: [String: String], prefix: [String]
    ) -> Process {
        let process = Process()
        let words = prefix + [binary] + arguments + (socket.map { ["--socket", $0] } ?? [])
        process.executableURL = URL(fileURLWithPath: words[0].hasPrefix("/") ? words[0] : "/usr/bin/" + words[0])
        process.arguments = Array(words.dropFirst())
        process.environment = ["PATH": "/usr/bin:/bin", "TERM": "xterm", "HOME": "/tmp"].merging(environment) { $1 }
        return process
    }
}
