// What the machine runs on, as the kernel's files say it. Documentation/ABI/testing/sysfs-class-power.

package enum HostPower: Equatable, Sendable {
    /// Or nobody says: most boards and desktops know nothing of where their power comes from.
    case mains
    /// Percent that is left; nil where the battery does not say.
    case battery(percent: Int?)

    /// As systemd judges ConditionACPower: a supply that is online is enough; else a battery that discharges is what it runs on.
    package init(_ files: HostFiles) {
        let root = "/sys/class/power_supply"
        var (hasSupply, discharging, percents) = (false, false, [Int]())
        for supply in files.names(root).map({ "\(root)/\($0)" }) {
            // A mouse's or a headset's.
            guard files.word(supply + "/scope") != "Device" else { continue }
            switch files.word(supply + "/type") {
            case "Battery", "UPS":
                // A drawer without a battery in it.
                guard files.word(supply + "/present") != "0" else { continue }
                if files.word(supply + "/status") == "Discharging" { discharging = true }
                if let percent = files.word(supply + "/capacity").flatMap({ Int($0) }), (0...100).contains(percent) {
                    percents.append(percent)
                }
            case nil: continue
            default:
                // Mains, USB and its kinds: 1 is fixed, 2 programmable.
                if let online = files.word(supply + "/online"), online != "0" { hasSupply = true }
            }
        }
        // Of several, the fullest: laptops drain them one after the other.
        self = hasSupply || !discharging ? .mains : .battery(percent: percents.max())
    }
}
