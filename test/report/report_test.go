// SPDX-License-Identifier: Apache-2.0

package report

import "testing"

func TestReplaceBetween(t *testing.T) {
	for _, tc := range []struct{ doc, want string }{
		{"a<b>old</b>c", "a<b>new</b>c"},
		{"a<b></b>", "a<b>new</b>"},
		{"a<b>old", ""},
		{"a", ""},
	} {
		got, err := replaceBetween([]byte(tc.doc), "<b>", "</b>", "new")
		if string(got) != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%q: %q, %v", tc.doc, got, err)
		}
	}
}

func TestBusy(t *testing.T) {
	for load, want := range map[string]bool{"0.35": false, "1.00": true, "23.41": true, "": false} {
		if got := (Machine{Load: load}).Busy(); got != want {
			t.Errorf("load %q: busy = %v", load, got)
		}
	}
}
