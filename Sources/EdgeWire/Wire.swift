// How values become JSON on the wire: snake-case keys, ISO 8601 dates, sorted keys. The only place that says so.
import Foundation

package enum Wire {
    package static func encoder() -> JSONEncoder {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.dateEncodingStrategy = .iso8601
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return encoder
    }

    package static func decoder() -> JSONDecoder {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        decoder.dateDecodingStrategy = .iso8601
        return decoder
    }

    /// `loraTargetModules` -> `lora_target_modules`, as the encoder does it.
    package static func snakeCase(_ name: String) -> String {
        name.reduce(into: "") { text, character in
            text += character.isUppercase ? "_" + character.lowercased() : String(character)
        }
    }

    /// 1 to 64 of `[A-Za-z0-9._-]`, not starting with a dot or a dash: safe as a file name and as an argument.
    package static func isName(_ name: String) -> Bool {
        (1...64).contains(name.utf8.count) && name.first != "." && name.first != "-"
            && name.utf8.allSatisfy {
                switch $0 {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"):
                    true
                default: false
                }
            }
    }

    /// The known key nearest to an unknown one, or nil when nothing is near (more than a third of it would change).
    package static func nearest(to unknown: String, among known: [String]) -> String? {
        let best = known.map { (key: $0, distance: editDistance(unknown, $0)) }.min { $0.distance < $1.distance }
        guard let best, best.distance <= max(2, unknown.count / 3) else { return nil }
        return best.key
    }

    private static func editDistance(_ a: String, _ b: String) -> Int {
        let (a, b) = (Array(a.prefix(64)), Array(b.prefix(64)))
        var row = Array(0...b.count)
        for i in a.indices {
            var diagonal = row[0]
            row[0] = i + 1
            for j in b.indices {
                let substitution = diagonal + (a[i] == b[j] ? 0 : 1)
                diagonal = row[j + 1]
                row[j + 1] = min(substitution, row[j] + 1, row[j + 1] + 1)
            }
        }
        return row[b.count]
    }
}
