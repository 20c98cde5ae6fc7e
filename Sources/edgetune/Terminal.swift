// What a terminal is told: width, colour, and text that cannot control it. Names, logs and model output come from
// elsewhere and pass through TerminalFilter before they are shown.
import Foundation
import Glibc

/// Removes escape sequences and control characters, but not newline and tab. Keeps its place between pieces, so that
/// a sequence cut in two by the network is removed all the same.
struct TerminalFilter {
    private enum Place { case text, escape, control, string, stringEscape }
    private var place = Place.text

    mutating func pass(_ text: String) -> String {
        var shown = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            switch place {
            case .text:
                switch scalar.value {
                case 0x1B: place = .escape
                case 0x9B: place = .control
                case 0x90, 0x98, 0x9D, 0x9E, 0x9F: place = .string
                case 0x09, 0x0A: shown.append(scalar)
                case 0..<0x20, 0x7F..<0xA0: break
                // Bidirectional overrides and isolates reorder what stands around them.
                case 0x202A...0x202E, 0x2066...0x2069: break
                default: shown.append(scalar)
                }
            case .escape:
                switch scalar {
                case "[": place = .control
                case "]", "P", "X", "^", "_": place = .string
                case " "..."/": break
                default: place = .text
                }
            case .control:
                switch scalar.value {
                case 0x40...0x7E: place = .text
                case 0x20...0x3F: break
                // Not a control sequence after all.
                default:
                    place = .text
                    if scalar.value == 0x0A { shown.append(scalar) }
                }
            case .string:
                switch scalar.value {
                case 0x07, 0x9C: place = .text
                case 0x1B: place = .stringEscape
                case 0x0A:
                    place = .text
                    shown.append(scalar)
                default: break
                }
            case .stringEscape: place = scalar == "\\" ? .text : .string
            }
        }
        return String(shown)
    }

    static func text(_ text: String) -> String {
        var filter = TerminalFilter()
        return filter.pass(text)
    }

    /// For a table cell or a status line.
    static func line(_ text: String) -> String {
        String(self.text(text).map { $0.isNewline || $0 == "\t" ? " " : $0 })
    }
}

enum Terminal {
    /// A terminal that can redraw a line, on both outputs.
    static var isInteractive: Bool {
        isatty(STDOUT_FILENO) == 1 && isatty(STDERR_FILENO) == 1 && variable("TERM") != "dumb"
    }

    static var hasColor: Bool { isInteractive && (variable("NO_COLOR") ?? "").isEmpty }

    /// Columns; 80 when unknown.
    static var width: Int {
        var size = winsize()
        if ioctl(STDERR_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 { return Int(size.ws_col) }
        return variable("COLUMNS").flatMap(Int.init) ?? 80
    }

    static func variable(_ name: String) -> String? { ProcessInfo.processInfo.environment[name] }

    static func print(_ text: String, terminator: String = "\n") { write(text + terminator, to: STDOUT_FILENO) }
    static func complain(_ text: String) { write(text + "\n", to: STDERR_FILENO) }

    /// Unbuffered, so that lines and progress come out in order. A closed pipe ends the program as SIGPIPE would.
    static func write(_ text: String, to descriptor: Int32) {
        var text = text
        text.withUTF8 { bytes in
            var rest = UnsafeRawBufferPointer(bytes)
            while let start = rest.baseAddress, !rest.isEmpty {
                let count = Glibc.write(descriptor, start, rest.count)
                if count < 0 {
                    if errno == EINTR || errno == EAGAIN { continue }
                    if errno == EPIPE { exit(ExitCode.failure.rawValue) }
                    return
                }
                rest = UnsafeRawBufferPointer(rebasing: rest[count...])
            }
        }
    }
}
