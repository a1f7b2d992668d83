// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"

	"github.com/openvwire/nsm/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }
