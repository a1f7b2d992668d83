// SPDX-License-Identifier: Apache-2.0

package mechanism

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

// InterfaceName is a name for an interface that nobody has named: the beginning of
// the service's, so that people know it, and 40 bits of what tells connections
// apart, so that ten thousand of them get along in one namespace. The same
// connection gets the same name again, after restarts too.
func InterfaceName(service, connection string) string {
	safe := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return -1
	}, service)
	if safe = strings.TrimLeft(safe, "-"); safe == "" {
		safe = "nsm" // no command takes it for an option
	}
	sum := sha256.Sum256([]byte(service + "\x00" + connection))
	return safe[:min(len(safe), 6)] + "-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}
