/*
 * QTest helpers for migration over a multiplexed connection: the catalogue of
 * faults
 *
 * Reads tests/data/migration/mux-faults.ini, whose header describes the keys.
 * Parses the file only; the tests interpret the keys.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_CATALOGUE_H
#define MUX_CATALOGUE_H

/*
 * Read the catalogue; call it before anything else.
 *
 * Returns: whether it could be read
 */
bool mux_catalogue_load(void);

/*
 * Call @func for each fault and each of its phases.  The strings belong to the
 * catalogue.
 */
void mux_catalogue_foreach(void (*func)(const char *fault, const char *phase));

/* Fail the test if the catalogue has an unknown key. */
void mux_catalogue_check(void);

/*
 * Look up a key of a phase.
 *
 * Returns: the value, which belongs to the catalogue, and is "" if the key is
 * absent; or whether the key is present and true
 */
const char *mux_phase_get(const char *phase, const char *key);
bool mux_phase_is(const char *phase, const char *key);

/*
 * The same for a fault in a phase; NULL if the key is absent.
 */
const char *mux_fault_get(const char *fault, const char *phase,
                          const char *key);
bool mux_fault_is(const char *fault, const char *phase, const char *key);

/* Returns: the elements of a list, to be freed; none for an absent key */
GStrv mux_fault_list(const char *fault, const char *phase, const char *key);

/*
 * Get the texts of which the error of a side must contain one.
 *
 * @side: "source" or "destination"
 *
 * Returns: a list to be freed; NULL if the catalogue names no cause
 */
GStrv mux_fault_texts(const char *fault, const char *phase, const char *side);

#endif
