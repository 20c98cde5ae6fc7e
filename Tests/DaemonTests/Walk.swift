// Which of the countable things a test goes through: a few when nobody says more.
//
//   EDGETUNE_PART=1/2      every second number, from the first: two parts side by side use two cores
//   EDGETUNE_SECONDS=240   ends in time and says where to go on
import Foundation

struct Walk {
    let numbers: [Int]

    /// - Parameter variable: of the environment: "all", or "FIRST-LAST".
    init(_ variable: String, sample: [Int]) {
        let environment = ProcessInfo.processInfo.environment
        let text = environment[variable] ?? ""
        let ends = text.split(separator: "-").compactMap { Int($0) }
        let part = (environment["EDGETUNE_PART"] ?? "").split(separator: "/").compactMap { Int($0) }
        func ofPart(_ all: ClosedRange<Int>) -> [Int] {
            part.count == 2 && part[1] > 0 ? all.filter { ($0 - part[0]) % part[1] == 0 } : Array(all)
        }
        // More than any walk has.
        numbers = text == "all" ? ofPart(1...100_000) : ends.count == 2 && ends[0] <= ends[1] ? ofPart(ends[0]...ends[1]) : sample
    }

    /// The whole test process: after it no other number is begun with.
    private static let deadline = ProcessInfo.processInfo.environment["EDGETUNE_SECONDS"].flatMap(Double.init).map {
        Date().addingTimeInterval($0)
    }

    /// Calls `body` with each number. Ends when three in a row struck nothing: how often the daemon commits depends on the clock.
    func each(_ what: String, _ body: (Int) throws -> Bool) rethrows {
        var misses = 0
        for number in numbers {
            if let deadline = Self.deadline, Date() > deadline {
                print("\(what): stopped before \(number)")
                return
            }
            misses = try body(number) ? 0 : misses + 1
            if misses == 3 {
                print("\(what): nothing more to strike after \(number)")
                return
            }
        }
    }
}
